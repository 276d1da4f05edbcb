"""Panels of lines over layers, with intervals as bands and a legend below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from psr_lens._utils.short_text import shortened
from psr_lens.plots.style import MUTED, MethodStyle, escaped, shown_name, translucent
from psr_lens.results.bootstrap import Estimate

_PANEL: Final = 190
BETWEEN: Final = 74
"""Pixels between panels."""
LEGEND_LINE: Final = 29
"""Height of a line of the legend, in pixels."""
_TICKS: Final = 9
Kind = Literal["method", "baseline", "ceiling"]
"""What a line stands for; it determines its dashes."""
_DASHES: Final[dict[Kind, str]] = {"method": "solid", "baseline": "dash", "ceiling": "dot"}

Point = tuple[float, float, float]
"""A value and the ends of its interval; without an interval, three times the value."""


def numbers(found: Estimate, *at: int) -> Point:
    """The numbers of an estimate; with an index into the layers where there are several."""
    value = float(found.value[at])
    low, high = (end if math.isfinite(end) else value for end in found.interval(*at))
    return value, low, high


def panels(*titles: str) -> tuple[go.Figure, int]:
    """A figure with panels of these titles, one below the other, and their height together in pixels."""
    plot = len(titles) * _PANEL + (len(titles) - 1) * BETWEEN
    figure = make_subplots(len(titles), 1, vertical_spacing=BETWEEN / plot, subplot_titles=titles)
    figure.update_annotations(font={"size": 12, "color": MUTED}, x=0, xanchor="left")
    return figure, plot


def line(
    figure: go.Figure,
    row: int,
    name: str,
    layers: Sequence[int],
    points: Sequence[Point],
    style: MethodStyle,
    kind: Kind = "method",
    *,
    legend: bool,
) -> None:
    """A line over layers, with the intervals as a band."""
    values, low, high = (list(each) for each in zip(*points, strict=True))
    if len(layers) > 1:
        figure.add_scatter(
            x=[*layers, *reversed(layers)],
            y=[*high, *reversed(low)],
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=translucent(style.color, 0.15),
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
            row=row,
            col=1,
        )
    figure.add_scatter(
        name=escaped(shortened(shown_name(name), 24)),
        x=list(layers),
        y=values,
        customdata=np.array([low, high]).T,
        mode="lines+markers",
        line={"color": style.color, "width": 1.5 if kind == "ceiling" else 2.5, "dash": _DASHES[kind]},
        marker={"symbol": "line-ew-open" if kind == "ceiling" else style.symbol, "size": 8, "color": style.color},
        hovertemplate="layer %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]",
        showlegend=legend,
        legendgroup=name,
        row=row,
        col=1,
    )


def layer_axes(figure: go.Figure, layers: Sequence[int]) -> None:
    """Let the horizontal axes of all panels be those of layers."""
    room = 0.3 + 0.02 * (layers[-1] - layers[0])
    figure.update_xaxes(
        tickvals=list(layers)[:: math.ceil(len(layers) / _TICKS)],
        range=[layers[0] - room, layers[-1] + room],
        title_text="layer",
        showgrid=False,
        showline=True,
    )


def legend_room(entries: int) -> int:
    """Margin below the panels, in pixels."""
    # In a narrow window, a line of the legend holds two entries.
    return 50 + LEGEND_LINE * math.ceil(entries / 2)


def with_legend(figure: go.Figure, plot: int) -> go.Figure:
    """The figure with its legend below panels of this height."""
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": -46 / plot, "yanchor": "top"}, showlegend=True)
    return figure
