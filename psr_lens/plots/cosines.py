"""How directions lie to each other, across layers, traits and methods."""

from __future__ import annotations

import itertools
import math
from typing import Final

import plotly.graph_objects as go

from psr_lens.interpretation.directions import Cosines
from psr_lens.plots.style import DIVERGING, INK, SMALL, escaped, titled
from psr_lens.plots.tokens import shortened

MAX_SITES: Final = 96
"""More sites than this are thinned out evenly, source by source."""

_LARGEST: Final = 560
_LEAST: Final = 260
_CELL: Final = 26
_TEXT_UP_TO: Final = 7
_NARROW: Final = 190
"""Pixels of the matrix in a window of 390."""
_LETTER: Final = 7


def cosine_matrix(found: Cosines) -> go.Figure:
    """Cosines as a heatmap, −1 to 1, source by source and layer by layer.

    Args:
        found: What `psr_lens.cosines` returned.

    Returns:
        A figure with one heatmap; sources are parted by lines.
    """
    step = math.ceil(len(found.names) / MAX_SITES)
    kept = [place for name in dict.fromkeys(found.names) for place in _of(found, name)[::step]]
    matrix = found.matrix[kept][:, kept]
    names = [found.names[place] for place in kept]
    labels = [_layer(found, place) for place in kept]
    hover = [f"{escaped(found.names[place])}, layer {_layer(found, place)}" for place in kept]
    places = list(range(len(kept)))
    figure = go.Figure(
        go.Heatmap(
            z=matrix.numpy(),
            x=places,
            y=places,
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
    shown = places[:: max(1, math.ceil(len(kept) / 32))]
    ticks = {"tickmode": "array", "tickvals": shown, "ticktext": [labels[place] for place in shown], "showgrid": False}
    figure.update_xaxes(side="top", tickangle=0, range=[-0.5, len(kept) - 0.5], **ticks)
    figure.update_yaxes(range=[len(kept) - 0.5, -0.5], **ticks)
    _mark_sources(figure, names)
    plot = min(_LARGEST, max(_LEAST, _CELL * len(kept)))
    notes = []
    if any(rank > 1 for rank in found.ranks):
        notes.append("Of several directions: the two combinations that lie closest, so never below 0.")
    if step > 1:
        notes.append(f"{len(kept)} of {len(found.names)} sites, evenly spaced.")
    return titled(figure, "Cosine between directions, by layer", plot=plot, top=104, bottom=12, left=112, note=" ".join(notes))


def _of(found: Cosines, name: str) -> list[int]:
    return [place for place, each in enumerate(found.names) if each == name]


def _layer(found: Cosines, place: int) -> str:
    layer = found.layers[place]
    return escaped(found.hooks[place]) if layer is None else str(layer)


def _mark_sources(figure: go.Figure, names: list[str]) -> None:
    """The name of each source beside its rows, and above its columns where it fits; a line where the next one begins."""
    begins = [place for place, name in enumerate(names) if place == 0 or names[place - 1] != name] + [len(names)]
    for start, stop in itertools.pairwise(begins):
        middle, label = (start + stop - 1) / 2, escaped(shortened(names[start], 14))
        common = {"text": label, "showarrow": False, "font": {"size": 12, "color": INK}}
        if len(label) * _LETTER <= _NARROW * (stop - start) / len(names):
            figure.add_annotation(x=middle, xref="x", y=1, yref="paper", yshift=30, yanchor="bottom", **common)
        figure.add_annotation(x=0, xref="paper", xshift=-26, xanchor="right", y=middle, yref="y", **common)
        if start:
            for add in (figure.add_vline, figure.add_hline):
                add(start - 0.5, line={"color": INK, "width": 1.2})
