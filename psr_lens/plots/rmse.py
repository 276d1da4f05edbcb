"""Relative RMSE of each replacement against the prompt, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens._utils.short_text import shortened
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PARAPHRASE
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import MUTED, PAPER, SMALL, escaped, method_styles, shown_name, titled, translucent

_PLOT: Final = 260
_BOTTOM: Final = 50
_TICKS: Final = 9
_MARKERS: Final = 12
_LEGEND_LINE: Final = 20
_INNER: Final = 0.9
_FAR: Final = 3.0
"""A value this many times as high as a share `_INNER` of the values is a spike, even where no token is massive."""
_SPIKE: Final = 1.5
"""Spikes are cut off if the highest is this many times as high as all other values."""
_ROOM: Final = 1.12
"""Height of the plot, relative to the highest value that is not cut off."""
_LABEL_LINE: Final = 15
_LABEL_LINES: Final = 4
"""Lines over which labels of cut peaks are spread, and their height in pixels."""


@draws
def relative_rmse(result: Comparison, **look: Unpack[Look]) -> go.Figure:
    """Relative RMSE `‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖` after each layer (figure 3 of Heyman & Vandeputte 2026).

    0 is the prompt's own effect, 1 is no steering. The dashed line is the paraphrase baseline: the same instruction in other words.
    At layers with massive activations, a single token can lift a line far above everything else. The plot then ends above the other
    layers and above what those layers have without massive tokens; each peak that is cut off is labelled ▲ with its value.

    Args:
        result: Result of `psr.compare`.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one line per replacement, and one for the paraphrase baseline if there is one.

    Raises:
        InputError: not a `Comparison`.

    Example:
        >>> figure = psr.plots.relative_rmse(comparison)
        >>> [trace.name for trace in figure.data]
        ['A-PSR', 'CAA']
    """
    styles = method_styles(result)
    layers = list(result.layers)
    figure = go.Figure()
    lines = {name: trace.relative_rmse for name, trace in result.methods.items()}
    for name, values in lines.items():
        figure.add_scatter(
            name=escaped(shortened(name, 24)),
            x=layers,
            y=values.numpy(),
            mode="lines+markers",
            line={"color": styles[name].color, "width": 2.5},
            marker={"symbol": styles[name].symbol, "size": 8, "color": styles[name].color, "maxdisplayed": _MARKERS},
            hovertemplate="layer %{x}: %{y:.3f}",
        )
    if result.paraphrase_rmse is not None:
        figure.add_scatter(
            name=shown_name(PARAPHRASE),
            x=layers,
            y=result.paraphrase_rmse.numpy(),
            mode="lines",
            line={"color": styles[PARAPHRASE].color, "width": 2.5, "dash": "dash"},
            hovertemplate="layer %{x}: %{y:.3f}",
        )
    figure.add_hline(
        y=1,
        line={"color": MUTED, "width": 1.5, "dash": "dot"},
        layer="below",
        annotation={"text": "no steering", "font": {"size": SMALL, "color": MUTED}, "bgcolor": PAPER, "borderpad": 1},
        annotation_position="top left",
    )
    drawn = [*lines.values(), *([] if result.paraphrase_rmse is None else [result.paraphrase_rmse])]
    top = _top(result)
    peaks = [(name, peak) for name, values in lines.items() for peak in _peaks(values.tolist(), top)]
    if result.paraphrase_rmse is not None:
        peaks += [(PARAPHRASE, peak) for peak in _peaks(result.paraphrase_rmse.tolist(), top)]
    for index, (name, (at, value)) in enumerate(sorted(peaks, key=lambda each: each[1])):
        figure.add_annotation(
            text=f"▲ {value:.3g}" if math.isfinite(value) else "▲ ∞",
            hovertext=f"{escaped(shown_name(name))}, layer {layers[at]}: {value:.3g}",
            x=layers[at],
            y=top,
            xanchor="left" if at < len(layers) / 2 else "right",
            yanchor="top",
            yshift=-_LABEL_LINE * (index % _LABEL_LINES),
            showarrow=False,
            font={"size": SMALL, "color": styles[name].color},
            bgcolor=translucent(PAPER, 0.8),
            borderpad=1,
        )
    room = 0.3 + 0.02 * (layers[-1] - layers[0])
    figure.update_xaxes(
        title_text="layer",
        tickvals=layers[:: math.ceil(len(layers) / _TICKS)],
        range=[layers[0] - room, layers[-1] + room],
        showgrid=False,
        showline=True,
    )
    figure.update_yaxes(title_text="relative RMSE", range=[0, top])
    # Space for the legend below the plot, which has two entries per line in a narrow window.
    bottom = _BOTTOM + _LEGEND_LINE * math.ceil(len(drawn) / 2)
    titled(figure, "Distance from the prompt's effect", plot=_PLOT, top=50, bottom=bottom, left=54)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": -46 / _PLOT, "yanchor": "top"}, showlegend=True)
    return figure


def _top(result: Comparison) -> float:
    """Upper end of the axis: above all values, or above all but spikes."""
    every, ordinary = [1.0], [1.0]
    lifted = [False] * len(result.layers) if result.massive is None else (result.massive.count() > 0).tolist()
    for each in result.distances.values():
        for massive, value, without in zip(lifted, each.relative_rmse.tolist(), each.without_massive.tolist(), strict=True):
            every.append(value)
            ordinary.append(min(value, without) if massive else value)
    highest, *_ = sorted(filter(math.isfinite, every), reverse=True)
    values = sorted(filter(math.isfinite, ordinary))
    inner = max(1.0, values[math.ceil(_INNER * len(values)) - 1])
    limit = min(values[-1], _FAR * inner)
    return _ROOM * (highest if highest <= _SPIKE * limit else limit)


def _peaks(values: Sequence[float], top: float) -> list[tuple[int, float]]:
    """Index and value of the highest point of every stretch of a line that is above the plot."""
    peaks: list[tuple[int, float]] = []
    for index, value in enumerate(values):
        if not value > top:
            continue
        if index and values[index - 1] > top:
            peaks[-1] = max(peaks[-1], (index, value), key=lambda each: each[1])
        else:
            peaks.append((index, value))
    return peaks
