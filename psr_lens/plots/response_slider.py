"""Several responses in one figure, with a slider to choose one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import plotly.graph_objects as go

from psr_lens._utils.arguments import checks_arguments, described
from psr_lens.errors import InputError
from psr_lens.plots.style import GRID, INK, MUTED, SMALL
from psr_lens.plots.token_rows import Tokened

FIRST: Final = 8
"""Number of responses shown by default."""

_TITLE: Final = (26, 20)
"""Pixels above the slider, and per line of the figure's title."""
_SLIDER: Final = 74


@checks_arguments
def by_response(
    figure: Callable[..., go.Figure], result: Tokened, triplets: Sequence[int] | None = None, **options: Any
) -> go.Figure:
    """The figure of one response, with a slider to switch between several.

    Args:
        figure: A function that takes a result and `triplet=`: `magnitude_heatmap`, `magnitude_strips`, `coefficient_text`,
            `magnitude_by_kind`, `patch_map` or `source_map`.
        result: The result.
        triplets: Indices of the responses; the first eight by default.
        options: Further arguments of `figure`.

    Returns:
        A figure with the traces of all responses, of which one response's are visible; image files show the first.

    Raises:
        InputError: not such a function or result, no responses, or an error of `figure`.

    Example:
        >>> figure = psr.plots.by_response(psr.plots.magnitude_strips, comparison, layer=3)
        >>> len(figure.layout.sliders[0].steps)
        4
    """
    if not callable(figure) or "triplet" not in inspect.signature(figure).parameters:
        got = getattr(figure, "__name__", described(figure))
        raise InputError("figure", got, "a function with an argument `triplet`, such as `psr.plots.magnitude_strips`")
    if not isinstance(result, Tokened):
        raise InputError("result", described(result), "a result with tokens, such as a Comparison from `psr.compare`")
    chosen = result.tokens.triplet.unique().tolist()[:FIRST] if triplets is None else list(triplets)
    if not chosen:
        raise InputError("triplets", "none", "at least one response")
    figures = [figure(result, triplet=triplet, **options) for triplet in chosen]
    steps: list[dict[str, Any]] = []
    owners = [index for index, each in enumerate(figures) for _ in each.data]
    for index, (triplet, each) in enumerate(zip(chosen, figures, strict=True)):
        layout = json.loads(each.to_json())["layout"]
        layout.pop("template", None)
        layout["margin"]["t"] += _SLIDER
        layout["height"] += _SLIDER
        steps.append(
            {"label": str(triplet), "method": "update", "args": [{"visible": [owner == index for owner in owners]}, layout]}
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
