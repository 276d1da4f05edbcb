"""What a replacement can be expected to reach at each layer, before it is fitted."""

from __future__ import annotations

import math
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens.evaluation.methods import PARAPHRASE
from psr_lens.evaluation.outlook import Outlook
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import PALETTE, shown_name, titled
from psr_lens.results.bootstrap import Estimate

_PLOT: Final = 280
_BOTTOM: Final = 50
_LEGEND_LINE: Final = 20
_TICKS: Final = 9


@draws
def outlook(result: Outlook, rank: int | None = None, **look: Unpack[Look]) -> go.Figure:
    """Share of the prompt's effect that a token-wise replacement can be expected to reach after each layer.

    Two lines: for a replacement that acts at all layers, and for one that acts at that layer alone. Dotted are their ceilings, which
    perfect coefficients would reach with as many directions; dashed is what a paraphrase of the instruction reproduces. Bars are 95 %
    intervals over responses.

    Args:
        result: Result of `psr.outlook`.
        rank: One of its ranks; the suggested one if left out.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with a line for each.

    Raises:
        InputError: not an `Outlook`, or a rank that was not looked at.

    Example:
        >>> found = psr.outlook(model, triplets)
        >>> [trace.name for trace in psr.plots.outlook(found).data]
        ['at all layers', 'their ceiling', 'at one layer', 'its ceiling']
    """
    wanted = result.rank if rank is None else rank
    light, dark = PALETTE["S-PSR"], PALETTE["A-PSR"]
    lines: dict[str, tuple[Estimate, str, str]] = {
        "at all layers": (result.reachable("all", wanted), dark, "solid"),
        "their ceiling": (result.ceiling("all", wanted), dark, "dot"),
        "at one layer": (result.reachable("one", wanted), light, "solid"),
        "its ceiling": (result.ceiling("one", wanted), light, "dot"),
    }
    if result.paraphrase_error is not None:
        lines[shown_name(PARAPHRASE)] = (result.paraphrase(), PALETTE["paraphrase"], "dash")
    figure = go.Figure()
    lowest = 0.0
    for name, (found, color, dash) in lines.items():
        figure.add_scatter(
            name=name,
            x=list(result.layers),
            y=found.value,
            mode="lines+markers",
            line={"color": color, "width": 2.5, "dash": dash},
            marker={"size": 6, "color": color},
            error_y={
                "array": found.high - found.value,
                "arrayminus": found.value - found.low,
                "thickness": 1,
                "width": 0,
                "color": color,
            },
            hovertemplate="layer %{x}: %{y:.2f}",
        )
        lowest = min([lowest, *(float(value) for value in found.value if math.isfinite(value))])
    layers = list(result.layers)
    figure.update_xaxes(title_text="layer", tickvals=layers[:: math.ceil(len(layers) / _TICKS)], showgrid=False)
    figure.update_yaxes(title_text="share of Σ‖Δ‖²", range=[max(lowest - 0.05, -0.5), 1.04], tickformat=".1f")
    note = f"{len(result.accumulated.energy)} responses, each predicted from the others; bars are 95 % intervals."
    bottom = _BOTTOM + _LEGEND_LINE * len(lines)  # in a narrow window, a line of the legend holds one entry
    titled(figure, f"What can be reached at rank {wanted}", plot=_PLOT, top=50, bottom=bottom, left=54, note=note)
    return figure.update_layout(legend={"orientation": "h", "x": 0, "y": -46 / _PLOT, "yanchor": "top"}, showlegend=True)
