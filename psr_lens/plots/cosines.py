"""Cosine similarities of directions across layers, traits and methods."""

from __future__ import annotations

import itertools
import math
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens._utils.short_text import shortened
from psr_lens.interpretation.directions import Cosines
from psr_lens.plots.look import Look, draws, room
from psr_lens.plots.style import DIVERGING, INK, SMALL, escaped, text_width, titled

MAX_SITES: Final = 96
"""Most sites; of more, evenly spaced ones of each source are drawn."""

_LARGEST: Final = 560
_LEAST: Final = 260
_CELL: Final = 26
_TEXT_UP_TO: Final = 7
_LEFT: Final = 112
"""Pixels left of the matrix, for the names of sources and layers."""
_RIGHT: Final = 78
"""Pixels right of the matrix, for the colour bar."""
_LABEL_LINE: Final = 13
_LONGEST: Final = 14
"""Most letters of a source's name."""
_TOP: Final = 56
"""Pixels above the names of sources, for the title; and those of layers below them."""
_LAYERS: Final = 26


@draws
def cosine_matrix(result: Cosines, **look: Unpack[Look]) -> go.Figure:
    """Cosine similarities as a heatmap, by source and layer.

    Args:
        result: Result of `psr.cosines`.
        look: `width`, `font_size` and `theme`; see `Look`.

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
    plot = min(_LARGEST, max(_LEAST, _CELL * len(kept)))
    across = (room() - _LEFT - _RIGHT) / len(kept)
    begins = _begins(names)
    widest = max(text_width(label, SMALL) for label in labels) + 5
    for update, pitch, least in ((figure.update_xaxes, across, widest), (figure.update_yaxes, plot / len(kept), _LABEL_LINE)):
        shown = _labelled(begins, math.ceil(least / pitch))
        update(tickmode="array", tickvals=shown, ticktext=[labels[cell] for cell in shown], showgrid=False)
    figure.update_xaxes(side="top", tickangle=0, range=[-0.5, len(kept) - 0.5])
    figure.update_yaxes(range=[len(kept) - 0.5, -0.5])
    above = _mark_sources(figure, names, begins, across)
    notes = []
    if any(rank > 1 for rank in result.ranks):
        notes.append("Sites with several directions: the largest cosine of any two combinations, so never below 0.")
    if step > 1:
        notes.append(f"{len(kept)} of {len(result.names)} sites, evenly spaced.")
    title, top = "Cosine similarity of directions, by layer", _TOP + above + _LAYERS
    return titled(figure, title, plot=plot, top=top, bottom=12, left=_LEFT, note=" ".join(notes))


def _of(result: Cosines, name: str) -> list[int]:
    return [site for site, each in enumerate(result.names) if each == name]


def _layer(result: Cosines, site: int) -> str:
    layer = result.layers[site]
    return escaped(result.hooks[site]) if layer is None else str(layer)


def _begins(names: list[str]) -> list[int]:
    """Index of the first site of each source, and of the end."""
    return [row for row, name in enumerate(names) if row == 0 or names[row - 1] != name] + [len(names)]


def _labelled(begins: list[int], step: int) -> list[int]:
    """Sites that are labelled: the first of each source, and of its others every n-th that is not too close to the next source."""
    last = begins[-1]
    return [
        cell
        for start, stop in itertools.pairwise(begins)
        for cell in range(start, stop, step)
        if cell == start or stop == last or stop - cell >= step
    ]


def _mark_sources(figure: go.Figure, names: list[str], begins: list[int], across: float) -> int:
    """The name of each source beside its rows and above its columns, turned where it is narrow; a line between sources.

    Returns:
        Height of the names above the columns, in pixels.
    """
    heights = [_LABEL_LINE + 4]
    for start, stop in itertools.pairwise(begins):
        middle, plain = (start + stop - 1) / 2, shortened(names[start], _LONGEST)
        common = {"text": escaped(plain), "showarrow": False, "font": {"size": 12, "color": INK}}
        turned = text_width(plain, 12) > across * (stop - start)
        if turned:
            heights.append(math.ceil(text_width(plain, 12)) + 4)
        angle = {"textangle": -90} if turned else {}
        figure.add_annotation(x=middle, xref="x", y=1, yref="paper", yshift=_LAYERS, yanchor="bottom", **angle, **common)
        figure.add_annotation(x=0, xref="paper", xshift=-_LAYERS, xanchor="right", y=middle, yref="y", **common)
        if start:
            for add in (figure.add_vline, figure.add_hline):
                add(start - 0.5, line={"color": INK, "width": 1.2})
    return max(heights)
