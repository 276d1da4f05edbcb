"""Several responses in one figure, with a slider to go from one to the next."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import plotly.graph_objects as go

from psr_lens.errors import InputError
from psr_lens.plots.style import GRID, INK, MUTED, SMALL
from psr_lens.plots.tokens import Tokened

FIRST: Final = 8
"""Responses that are shown unless others are asked for."""

_TITLE: Final = (26, 20)
"""Pixels above the slider, and for each line of the figure's title."""
_SLIDER: Final = 74


def by_response(
    figure: Callable[..., go.Figure], result: Tokened, triplets: Sequence[int] | None = None, **options: Any
) -> go.Figure:
    """A figure of one response for each of several, one at a time, with a slider: `by_response(plots.magnitude_strips, result)`.

    Args:
        figure: One that takes a result and `triplet=`: `magnitude_heatmap`, `magnitude_strips`, `coefficient_text`, `magnitude_by_kind`,
            `patch_map`, `source_map`.
        result: The result.
        triplets: Which responses; the first eight by default.
        options: Further arguments of `figure`.

    Returns:
        A figure with the traces of all of them, of which one response's are visible; pictures show the first.

    Raises:
        InputError: no responses are asked for; and whatever `figure` raises.
    """
    chosen = result.tokens.triplet.unique().tolist()[:FIRST] if triplets is None else list(triplets)
    if not chosen:
        raise InputError("triplets", "none", "at least one response")
    figures = [figure(result, triplet=triplet, **options) for triplet in chosen]
    steps: list[dict[str, Any]] = []
    owners = [place for place, each in enumerate(figures) for _ in each.data]
    for place, (triplet, each) in enumerate(zip(chosen, figures, strict=True)):
        layout = json.loads(each.to_json())["layout"]
        layout.pop("template", None)
        layout["margin"]["t"] += _SLIDER
        layout["height"] += _SLIDER
        steps.append(
            {"label": str(triplet), "method": "update", "args": [{"visible": [owner == place for owner in owners]}, layout]}
        )
    shown = go.Figure([trace for each in figures for trace in each.data], figures[0].layout)
    for trace, owner in zip(shown.data, owners, strict=True):
        trace.visible = owner == 0
    top, above = figures[0].layout.margin.t, _TITLE[0] + _TITLE[1] * (1 + figures[0].layout.title.text.count("<br>"))
    shown.update_layout(
        height=figures[0].layout.height + _SLIDER,
        margin_t=top + _SLIDER,
        sliders=[
            {
                "steps": steps,
                "currentvalue": {"prefix": "response ", "font": {"size": 12, "color": INK}},
                "font": {"size": SMALL, "color": MUTED},
                "x": 0,
                "len": 1,
                "y": 1,
                "yanchor": "bottom",
                "pad": {"b": max(0, top - above), "t": 0, "l": 0, "r": 0},
                "bgcolor": GRID,
                "activebgcolor": MUTED,
                "borderwidth": 0,
                "tickcolor": MUTED,
                "ticklen": 4,
            }
        ],
    )
    return shown
