"""The coefficient that a replacement applies to each token, against the one that the prompt calls for."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Int
from plotly.subplots import make_subplots
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.style import INK, MUTED, SMALL, escaped, method_styles, titled, translucent
from psr_lens.plots.token_rows import shortened, trace_of
from psr_lens.prompts.token_text import readable

MAX_POINTS: Final = 1_200
"""Most points per panel. Of more tokens, evenly spaced ones in order of the wanted coefficient are drawn, so that the largest stay."""
MAX_PANELS: Final = 12
"""Most panels; of more layers, evenly spaced ones are drawn."""

_COLUMNS: Final = 3
_PANEL: Final = 190
_BETWEEN: Final = 74


@checks_arguments
def coefficient_scatter(result: Comparison, method: str, *, max_points: int = MAX_POINTS) -> go.Figure:
    """One panel per layer, one point per token: what the prompt calls for along the directions, and what the replacement adds.

    Points on the diagonal have the right coefficient (assumption 3.2a of Heyman & Vandeputte 2026: the coefficient can be read from the
    token's own activation). A constant gives a horizontal line.

    Args:
        result: Result of `psr.compare`.
        method: Name of the replacement.
        max_points: Most points per panel.

    Returns:
        A figure with one panel per site; its heading has Pearson's correlation over all tokens.

    Raises:
        InputError: not a `Comparison`, no such replacement, or `max_points` below 1.

    Example:
        >>> figure = psr.plots.coefficient_scatter(comparison, "CAA")
        >>> figure.layout.annotations[0].text
        'layer 2<br>no spread'
    """
    check_most(max_points, "max_points")
    trace = trace_of(result, method)
    style = method_styles(result)[method]
    every = list(range(len(trace.site_layers)))
    sites = every if len(every) <= MAX_PANELS else sorted({round(index) for index in np.linspace(0, len(every) - 1, MAX_PANELS)})
    columns = min(_COLUMNS, len(sites))
    lines = math.ceil(len(sites) / columns)
    plot = lines * _PANEL + (lines - 1) * _BETWEEN
    figure = make_subplots(
        lines,
        columns,
        horizontal_spacing=0.08,
        vertical_spacing=_BETWEEN / plot if lines > 1 else 0,
        subplot_titles=[_heading(trace.site_layers[site], trace.coefficient[:, site], trace.projection[:, site]) for site in sites],
    )
    texts = readable(result.tokens.strings)
    for index, site in enumerate(sites):
        row, column = divmod(index, columns)
        added, wanted = trace.coefficient[:, site], trace.projection[:, site]
        shown = _spread(wanted.argsort(descending=True), max_points)
        ends = [min(0.0, float(wanted.min())), max(float(wanted.max()), float(added.max()), 1e-6)]
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": MUTED, "width": 1, "dash": "dot"},
            hoverinfo="skip",
            row=row + 1,
            col=column + 1,
        )
        figure.add_scatter(
            x=wanted[shown].numpy(),
            y=added[shown].numpy(),
            mode="markers",
            marker={"color": translucent(style.color, 0.45), "size": 5, "line": {"width": 0}},
            hovertext=[escaped(shortened(texts[at], 24)) for at in shown.tolist()],
            hovertemplate=f"%{{hovertext}}<br>layer {trace.site_layers[site]}<br>"
            "prompt calls for %{x:.3g}<br>replacement adds %{y:.3g}<extra></extra>",
            row=row + 1,
            col=column + 1,
        )
    figure.update_xaxes(title_text="prompt calls for", title_font_size=SMALL, title_standoff=2, nticks=3, tickangle=0)
    figure.update_yaxes(nticks=5)
    figure.update_yaxes(title_text="replacement adds", title_font_size=SMALL, col=1)
    figure.update_annotations(font={"size": 12, "color": INK})
    notes = []
    if len(result.tokens) > max_points:
        notes.append(
            f"Each panel shows {max_points:,} of {len(result.tokens):,} tokens, evenly spaced in order of the coefficient called for."
        )
    if len(sites) < len(every):
        notes.append(f"{len(sites)} of {len(every)} layers, evenly spaced.")
    titled(
        figure,
        f"{escaped(shortened(method, 24))}: coefficient applied vs. called for",
        plot=plot,
        top=88,
        bottom=48,
        left=58,
        note=" ".join(notes),
    )
    figure.update_layout(showlegend=False)
    return figure


def _heading(layer: int, added: Tensor, wanted: Tensor) -> str:
    pair = np.stack([added.double().numpy(), wanted.double().numpy()])
    # The coefficients of a constant differ by rounding.
    flat = len(added) < 2 or bool((pair.std(axis=1) <= 1e-5 * np.abs(pair).max(axis=1)).any())
    return f"layer {layer}<br>" + ("no spread" if flat else f"r = {np.corrcoef(pair)[0, 1]:.2f}")


def _spread(order: Int[Tensor, " token"], most: int) -> Int[Tensor, " shown"]:
    return order if len(order) <= most else order[np.linspace(0, len(order) - 1, most).round().astype(int)]
