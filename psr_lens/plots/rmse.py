"""Relative RMSE of each replacement against the prompt, layer by layer."""

from __future__ import annotations

import math
from typing import Final

import plotly.graph_objects as go

from psr_lens._utils.arguments import checks_arguments
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PARAPHRASE
from psr_lens.plots.style import MUTED, PAPER, SMALL, escaped, method_styles, shown_name, titled
from psr_lens.plots.token_rows import shortened

_PLOT: Final = 260
_BOTTOM: Final = 50
_TICKS: Final = 9
_MARKERS: Final = 12
_LEGEND_LINE: Final = 20


@checks_arguments
def relative_rmse(result: Comparison) -> go.Figure:
    """Relative RMSE `‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖` after each layer (figure 3 of Heyman & Vandeputte 2026).

    0 is the prompt's own effect, 1 is no steering. The dashed line is the paraphrase baseline: the same instruction in other words.

    Args:
        result: Result of `psr.compare`.

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
    highest = max([1.0, *(value for values in drawn for value in values.tolist() if math.isfinite(value))])
    room = 0.3 + 0.02 * (layers[-1] - layers[0])
    figure.update_xaxes(
        title_text="layer",
        tickvals=layers[:: math.ceil(len(layers) / _TICKS)],
        range=[layers[0] - room, layers[-1] + room],
        showgrid=False,
        showline=True,
    )
    figure.update_yaxes(title_text="relative RMSE", range=[0, highest * 1.12])
    # Space for the legend below the plot, which has two entries per line in a narrow window.
    bottom = _BOTTOM + _LEGEND_LINE * math.ceil(len(drawn) / 2)
    titled(figure, "Distance from the prompt's effect", plot=_PLOT, top=50, bottom=bottom, left=54)
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": -46 / _PLOT, "yanchor": "top"}, showlegend=True)
    return figure
