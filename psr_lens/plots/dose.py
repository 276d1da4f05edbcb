"""How much each method adds to activations, relative to them, layer by layer."""

from __future__ import annotations

import math
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.evaluation.collateral import Collateral
from psr_lens.evaluation.relative_dose import PERCENTILE
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import MUTED, PAPER, SMALL, escaped, named_styles, titled

_PLOT: Final = 240
_BOTTOM: Final = 50
_TICKS: Final = 9
_LEGEND_LINE: Final = 20


@draws
def relative_dose(result: Collateral, **look: Unpack[Look]) -> go.Figure:
    """Relative dose `‖(α + b)·λ(A)·z‖ / ‖A‖` of each method on its own answers, by layer: 99th percentile and mean over tokens.

    Args:
        result: Result of `psr.collateral`.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with two lines for each method, the 99th percentile and (dotted) the mean; a line marks the limit, if one was set.

    Raises:
        InputError: not a `Collateral`, or one without doses.

    Example:
        >>> found = psr.collateral(model, pairs[:2], pirate, sampling=psr.SamplingConfig(max_new_tokens=8))
        >>> [trace.name for trace in psr.plots.relative_dose(found).data]
        ['A-PSR', 'A-PSR, mean']
    """
    if not result.doses:
        raise InputError("result", "a Collateral without doses", "one of `psr.collateral`, which measures them")
    styles, figure = named_styles(list(result.doses)), go.Figure()
    highest = result.dose_limit or 0.0
    for name, dose in result.doses.items():
        layers, style, shown = sorted(set(dose.layers)), styles[name], escaped(shortened(name, 24))
        for label, values, line in (
            (shown, [dose.quantile(PERCENTILE, layer) for layer in layers], "solid"),
            (f"{shown}, mean", [float(dose.mean(layer).value) for layer in layers], "dot"),
        ):
            highest = max(highest, *values)
            figure.add_scatter(
                name=label,
                x=layers,
                y=values,
                mode="lines+markers",
                line={"color": style.color, "width": 2.5, "dash": line},
                marker={"symbol": style.symbol + ("-open" if line == "dot" else ""), "size": 7, "color": style.color},
                hovertemplate="layer %{x}: %{y:.3g}",
                legendgroup=shown,
                showlegend=line == "solid",
            )
    if result.dose_limit is not None:
        figure.add_hline(
            y=result.dose_limit,
            line={"color": MUTED, "width": 1.5, "dash": "dash"},
            layer="below",
            annotation={"text": "limit", "font": {"size": SMALL, "color": MUTED}, "bgcolor": PAPER, "borderpad": 1},
            annotation_position="top left",
        )
    every = sorted({layer for dose in result.doses.values() for layer in dose.layers})
    room = 0.3 + 0.02 * (every[-1] - every[0])
    figure.update_xaxes(
        title_text="layer",
        tickvals=every[:: math.ceil(len(every) / _TICKS)],
        range=[every[0] - room, every[-1] + room],
        showgrid=False,
        showline=True,
    )
    figure.update_yaxes(title_text="‖added‖ / ‖activation‖", range=[0, highest * 1.12 or 1])
    bottom = _BOTTOM + _LEGEND_LINE * math.ceil(len(result.doses) / 2)
    note = "Solid: the 99th percentile over tokens of the method’s own answers. Dotted and hollow: their mean."
    titled(figure, "Relative dose", plot=_PLOT, top=50, bottom=bottom, left=60, note=note)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": -46 / _PLOT, "yanchor": "top"}, showlegend=True)
    return figure
