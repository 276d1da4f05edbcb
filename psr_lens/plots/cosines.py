"""Cosine similarities of directions across layers, traits and methods."""

from __future__ import annotations

import itertools
import math
from typing import Final

import plotly.graph_objects as go

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.short_text import shortened
from psr_lens.interpretation.directions import Cosines
from psr_lens.plots.style import DIVERGING, INK, SMALL, escaped, titled

MAX_SITES: Final = 96
"""Most sites; of more, evenly spaced ones of each source are drawn."""

_LARGEST: Final = 560
_LEAST: Final = 260
_CELL: Final = 26
_TEXT_UP_TO: Final = 7
_NARROW: Final = 190
"""Width of the matrix in a window of 390 pixels."""
_LETTER: Final = 7


@checks_arguments
def cosine_matrix(result: Cosines) -> go.Figure:
    """Cosine similarities as a heatmap, by source and layer.

    Args:
        result: Result of `psr.cosines`.

    Returns:
        A figure with one heatmap, from −1 to 1; lines separate the sources.

    Raises:
        InputError: not a `Cosines`.

    Example:
        >>> figure = psr.plots.cosine_matrix(psr.cosines({"A-PSR": pirate, "CAA": caa}))
        >>> figure.data[0].z.shape
        (7, 7)
    """
    step = math.ceil(len(result.names) / MAX_SITES)
    kept = [site for name in dict.fromkeys(result.names) for site in _of(result, name)[::step]]
    matrix = result.matrix[kept][:, kept]
    names = [result.names[site] for site in kept]
    labels = [_layer(result, site) for site in kept]
    hover = [f"{escaped(result.names[site])}, layer {_layer(result, site)}" for site in kept]
    cells = list(range(len(kept)))
    figure = go.Figure(
        go.Heatmap(
            z=matrix.numpy(),
            x=cells,
            y=cells,
            text=[[f"{left}<br>{right}" for right in hover] for left in hover],
            texttemplate="%{z:.2f}" if len(kept) <= _TEXT_UP_TO else None,
            textfont={"size": SMALL},
            zmin=-1,
            zmax=1,
            colorscale=DIVERGING,
            xgap=1 if len(kept) <= 40 else 0,
            ygap=1 if len(kept) <= 40 else 0,
            hovertemplate="%{text}<br>cosine %{z:.3f}<extra></extra>",
            hoverongaps=False,
            colorbar={"title": {"text": "cosine", "side": "top"}, "thickness": 10, "tickvals": [-1, -0.5, 0, 0.5, 1]},
        )
    )
    shown = cells[:: max(1, math.ceil(len(kept) / 32))]
    ticks = {"tickmode": "array", "tickvals": shown, "ticktext": [labels[cell] for cell in shown], "showgrid": False}
    figure.update_xaxes(side="top", tickangle=0, range=[-0.5, len(kept) - 0.5], **ticks)
    figure.update_yaxes(range=[len(kept) - 0.5, -0.5], **ticks)
    _mark_sources(figure, names)
    plot = min(_LARGEST, max(_LEAST, _CELL * len(kept)))
    notes = []
    if any(rank > 1 for rank in result.ranks):
        notes.append("Sites with several directions: the largest cosine of any two combinations, so never below 0.")
    if step > 1:
        notes.append(f"{len(kept)} of {len(result.names)} sites, evenly spaced.")
    return titled(
        figure, "Cosine similarity of directions, by layer", plot=plot, top=104, bottom=12, left=112, note=" ".join(notes), wide=36
    )


def _of(result: Cosines, name: str) -> list[int]:
    return [site for site, each in enumerate(result.names) if each == name]


def _layer(result: Cosines, site: int) -> str:
    layer = result.layers[site]
    return escaped(result.hooks[site]) if layer is None else str(layer)


def _mark_sources(figure: go.Figure, names: list[str]) -> None:
    """The name of each source beside its rows, and above its columns if it fits; a line between sources."""
    begins = [row for row, name in enumerate(names) if row == 0 or names[row - 1] != name] + [len(names)]
    for start, stop in itertools.pairwise(begins):
        middle, label = (start + stop - 1) / 2, escaped(shortened(names[start], 14))
        common = {"text": label, "showarrow": False, "font": {"size": 12, "color": INK}}
        if len(label) * _LETTER <= _NARROW * (stop - start) / len(names):
            figure.add_annotation(x=middle, xref="x", y=1, yref="paper", yshift=30, yanchor="bottom", **common)
        figure.add_annotation(x=0, xref="paper", xshift=-26, xanchor="right", y=middle, yref="y", **common)
        if start:
            for add in (figure.add_vline, figure.add_hline):
                add(start - 0.5, line={"color": INK, "width": 1.2})
