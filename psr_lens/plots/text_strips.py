"""A response as text, coloured by how hard each token is pushed: once for the prompt, and once for each replacement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PROMPT
from psr_lens.plots.heatmap import colour_range, magnitude_axis
from psr_lens.plots.style import INK, MONO, SMALL, escaped, method_styles, titled
from psr_lens.plots.text_layout import LINE, PlacedToken, in_lines
from psr_lens.plots.token_rows import rows_of, shortened, signed, traces_of
from psr_lens.prompts.token_text import readable

MAX_TOKENS: Final = 300
"""Most tokens drawn; of a longer response, the first ones."""

_ROW: Final = 22
"""Height of a strip in pixels."""
_GAP: Final = 0.55
"""Space between lines of text, in strip heights."""
_DARK: Final = 0.55
"""Share of the colour scale above which letters are white."""


@checks_arguments
def magnitude_strips(
    result: Comparison, triplet: int = 0, layer: int | None = None, methods: Sequence[str] | None = None
) -> go.Figure:
    """One response as text, in one strip for the prompt and one for each replacement, coloured by ‖Δ‖ after one layer.

    The colour scale is the log scale of `magnitude_heatmap`, the same for every response of a result.

    Args:
        result: Result of `psr.compare`.
        triplet: Index of the response.
        layer: The layer; by default the last one compared.
        methods: Replacements to show, in this order; all by default.

    Returns:
        A figure with one bar trace per method and one bar per token; `customdata` holds magnitudes in the activation's units.

    Raises:
        InputError: not a `Comparison`, or no such response, replacement or layer.

    Example:
        >>> figure = psr.plots.magnitude_strips(comparison, layer=3)
        >>> figure.layout.title.text
        'Magnitude after layer 3, token by token'
    """
    if layer is None:
        layer = result.layers[-1]
    if layer not in result.layers:
        raise InputError("layer", repr(layer), f"a layer that was compared ({', '.join(map(str, result.layers))})")
    column = result.layers.index(layer)
    traces = traces_of(result, methods)
    every = rows_of(result, triplet)
    rows = every[:MAX_TOKENS]
    magnitudes = {PROMPT: result.magnitude[rows, column]} | {name: trace.magnitude[rows, column] for name, trace in traces.items()}
    texts = readable([result.tokens.strings[row] for row in rows.tolist()], result.tokens.strings)
    placed = in_lines(texts, least=1)
    positions = result.tokens.position[rows].tolist()
    low, high = colour_range(result)
    figure = go.Figure()
    pitch = len(magnitudes) + _GAP
    for order, (name, magnitude) in enumerate(magnitudes.items()):
        heights = [token.line * pitch + order for token in placed]
        figure.add_trace(_strip(name, layer, magnitude, positions, placed, heights, (low, high)))
    lines = placed[-1].line + 1
    styles = method_styles(result)
    figure.update_yaxes(
        range=[lines * pitch - _GAP + 0.1, -0.1],
        tickmode="array",
        tickvals=[line * pitch + order + 0.5 for line in range(lines) for order in range(len(magnitudes))],
        ticktext=[f'<span style="color:{styles[name].color}">■</span> {escaped(shortened(name, 12))}' for name in magnitudes]
        * lines,
        ticklabelstandoff=4,
        showgrid=False,
        automargin=True,
    )
    figure.update_xaxes(range=[0, LINE], visible=False)
    plot = round(lines * pitch * _ROW)
    # Bars have no colour bar of their own; an empty trace adds it.
    figure.add_scatter(x=[None], y=[None], mode="markers", marker={"color": [low], "coloraxis": "coloraxis"}, showlegend=False)
    figure.update_layout(barmode="overlay", showlegend=False, coloraxis=magnitude_axis(low, high, 66 / plot))
    note = "" if len(rows) == len(every) else f"The first {len(rows):,} of {len(every):,} tokens."
    return titled(figure, f"Magnitude after layer {layer}, token by token", plot=plot, top=112, bottom=10, note=note)


def _strip(
    name: str,
    layer: int,
    magnitude: Float[Tensor, " row"],
    positions: Sequence[int],
    placed: Sequence[PlacedToken],
    heights: Sequence[float],
    ends: tuple[float, float],
) -> go.Bar:
    low, high = ends
    exponents = magnitude.clamp(min=10.0**low).log10()
    dark = low + _DARK * (high - low)
    return go.Bar(
        name=escaped(name),
        orientation="h",
        base=[token.center - token.width / 2 for token in placed],
        x=[token.width - 0.12 for token in placed],
        y=[height + 0.5 for height in heights],
        width=0.94,
        marker={"color": exponents.numpy(), "coloraxis": "coloraxis", "line": {"width": 0}},
        customdata=magnitude.numpy(),
        text=[escaped(token.text) for token in placed],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        constraintext="none",
        textfont={"family": MONO, "size": SMALL, "color": ["#fff" if value > dark else INK for value in exponents.tolist()]},
        hovertext=[f"{'prompt ' if position < 0 else ''}{signed(position)}" for position in positions],
        hovertemplate=f"%{{text}} (%{{hovertext}})<br>layer {layer}<br>magnitude %{{customdata:.3g}}<extra>{escaped(name)}</extra>",
    )
