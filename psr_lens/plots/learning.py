"""Losses of a fit by gradient descent."""

from __future__ import annotations

import math
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens._utils.arguments import described
from psr_lens.errors import InputError
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import MUTED, PALETTE, PAPER, SMALL, log_ticks, real_units, titled
from psr_lens.replacement import LearningCurve

_PLOT: Final = 240


@draws
def learning_curve(curve: LearningCurve | None, **look: Unpack[Look]) -> go.Figure:
    """Training and validation loss by epoch, on a log scale, with the epoch whose state was kept.

    Args:
        curve: `replacement.curve`, of a replacement that was fitted by gradient descent; it is None for other solvers.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one line for training and one for validation, if there was any.

    Raises:
        InputError: not a learning curve, or one without epochs.

    Example:
        >>> from psr_lens.replacement import LearningCurve
        >>> curve = LearningCurve(train=(1.0, 0.5), validation=(), seconds=(1.0, 1.0), kept=1)
        >>> psr.plots.learning_curve(curve).data[0].y
        (0.0, -0.3010...)
    """
    if not isinstance(curve, LearningCurve) or not curve.train:
        got = "a LearningCurve without epochs" if isinstance(curve, LearningCurve) else described(curve)
        raise InputError("curve", got, "the `curve` of a replacement that was fitted by gradient descent (e.g. with `psr.Joint`)")
    figure = go.Figure()
    lines = {"training": (curve.train, PALETTE["A-PSR"], "solid"), "validation": (curve.validation, PALETTE["prompt"], "dash")}
    drawn = [value for losses, _, _ in lines.values() for value in losses if math.isfinite(value) and value > 0]
    for name, (losses, color, dash) in lines.items():
        if losses:
            figure.add_scatter(
                name=name,
                x=list(range(1, len(losses) + 1)),
                y=[math.log10(value) if math.isfinite(value) and value > 0 else None for value in losses],
                customdata=losses,
                mode="lines+markers",
                line={"color": color, "width": 2.5, "dash": dash},
                marker={"size": 7},
                hovertemplate=f"epoch %{{x}}: %{{customdata:.4g}}<extra>{name}</extra>",
            )
    if curve.kept is not None and curve.kept + 1 < len(curve.train):
        figure.add_vline(
            x=curve.kept + 1,
            line={"color": MUTED, "width": 1.5, "dash": "dot"},
            annotation={"text": "kept", "font": {"size": SMALL, "color": MUTED}, "bgcolor": PAPER},
        )
    low, high = (math.log10(bound) for bound in (min(drawn, default=1.0), max(drawn, default=1.0)))
    margin = max(0.1 * (high - low), 0.02)
    ticks = log_ticks(low - margin, high + margin)
    labels = list(map(real_units, ticks))
    if len(set(labels)) < len(labels):  # losses that differ by less than plain notation shows
        labels = [f"{10**tick:.6g}" for tick in ticks]
    figure.update_yaxes(title_text="loss", range=[low - margin, high + margin], tickvals=ticks, ticktext=labels)
    figure.update_xaxes(title_text="epoch", dtick=max(1, math.ceil(len(curve.train) / 10)), showgrid=False, showline=True)
    titled(figure, "Loss by epoch", plot=_PLOT, top=50, bottom=70, left=60)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": -46 / _PLOT, "yanchor": "top"}, showlegend=True)
    return figure
