"""Several responses in one figure, with a slider to choose one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import plotly.graph_objects as go

from psr_lens._utils.arguments import described
from psr_lens.errors import InputError
from psr_lens.plots.look import draws
from psr_lens.plots.sliders_and_buttons import switched, without_slider
from psr_lens.plots.token_rows import Tokened

FIRST: Final = 8
"""Number of responses shown by default."""


@draws
def by_response(
    figure: Callable[..., go.Figure], result: Tokened, triplets: Sequence[int] | None = None, **options: Any
) -> go.Figure:
    """The figure of one response, with a slider to switch between several.

    Args:
        figure: A function that takes a result and `triplet=`: `magnitude_heatmap`, `magnitude_strips`, `magnitude_by_kind`,
            `patch_map` or `source_map`.
        result: The result.
        triplets: Indices of the responses; the first eight by default.
        options: Further arguments of `figure`; `width`, `font_size` and `theme` as well (see `Look`).

    Returns:
        A figure with the traces of all responses, with only one response visible at a time; image files show the first. A figure that has a
        slider over layers stays at the layer that it shows first; `layer=` chooses another.

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
    figures = [without_slider(figure(result, triplet=triplet, **options)) for triplet in chosen]
    return switched(figures, [str(triplet) for triplet in chosen], "response")
