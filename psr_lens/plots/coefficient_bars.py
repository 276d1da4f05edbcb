"""Bars under each token of a response: the coefficient that a replacement applies, and the one that the prompt calls for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Unpack

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.short_text import shortened
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PROMPT
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.look import Look, draws
from psr_lens.plots.sliders_and_buttons import MAX_STEPS, steps_of, switched
from psr_lens.plots.style import GRID, INK, MONO, MUTED, SMALL, escaped, method_styles, round_below, titled
from psr_lens.plots.text_layout import FONT_SIZE, PlacedToken, placed_tokens, text_axes
from psr_lens.plots.token_rows import Word, rows_and_words, signed, site_of, trace_with_sites, word_note

MAX_TOKENS: Final = 400
"""Most tokens drawn; of a longer response, the first ones."""

_BAR: Final = 1.4
"""Largest width of a bar, in characters; two bars fit under a token of any length."""
_PIXELS: Final = 84
"""Height of a line of text with its bars, in pixels."""
_TEXT: Final = 0.5
_GAP: Final = 0.2
"""Heights of the text and of the space under the bars, relative to the longest bar."""


@dataclass(frozen=True)
class _Scale:
    """Vertical positions in the activation's units, downwards, so that the length of a bar is its value."""

    above: float
    """Longest bar upwards, where the push is against the direction."""
    below: float
    """Longest bar downwards."""

    @property
    def longest(self) -> float:
        """Height of the bars of one line."""
        return self.above + self.below or 1.0

    @property
    def pitch(self) -> float:
        """Distance from one line to the next."""
        return self.longest * (_TEXT + 1 + _GAP)

    def text(self, line: int) -> float:
        """Vertical middle of a line's text."""
        return line * self.pitch + self.longest * _TEXT * 0.6

    def zero(self, line: int) -> float:
        """Baseline of a line's bars."""
        return line * self.pitch + self.longest * _TEXT + self.above


@draws
def coefficient_text(
    result: Comparison,
    method: str,
    triplet: int = 0,
    layer: int | None = None,
    *,
    word: Word = "read",
    max_layers: int = MAX_STEPS,
    **look: Unpack[Look],
) -> go.Figure:
    """One response as text, with two bars under each token: what the replacement adds and what the prompt calls for.

    The first bar is `α·‖λ(A)·z‖`, the second the part of (prompted activation − arriving activation) along the replacement's directions,
    in the same units and on the same scale. Where the prompt pushes against the direction, the bar points up; a ReLU cannot follow.
    A slider selects among the layers at which the replacement acts.

    Args:
        result: Result of `psr.compare`.
        method: Name of the replacement.
        triplet: Index of the response.
        layer: The only layer to show; by default a slider selects among all, and begins at the one where the replacement adds most.
        word: What stands above the bars: the token that was `read`, or the next one, which is `predicted` from the activation.
        max_layers: Most layers of the slider; of more, evenly spaced ones are offered, with the one where most is added.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with two bar traces (for each layer) whose lengths `y` are in the activation's units.

    Raises:
        InputError: not a `Comparison`, no such response, replacement or word, an adapter, a layer at which it does not act, or `max_layers`
            below 1.

    Example:
        >>> figure = psr.plots.coefficient_text(comparison, "A-PSR", layer=2)
        >>> figure.layout.title.text
        'A-PSR at layer 2: coefficient by token'
    """
    check_most(max_layers, "max_layers")
    rows, words = rows_and_words(result, triplet, word)
    trace = trace_with_sites(result, method)
    first = site_of(trace, method, layer)
    sites = steps_of(len(trace.site_layers), first, max_layers) if layer is None else [first]
    notes = [word_note(word)]
    if len(rows) > MAX_TOKENS:
        notes.append(f"The first {MAX_TOKENS:,} of {len(rows):,} tokens.")
    if layer is None and len(sites) < len(trace.site_layers):
        notes.append(f"{len(sites)} of {len(trace.site_layers)} layers, evenly spaced.")
    rows, words = rows[:MAX_TOKENS], words[:MAX_TOKENS]
    figures = [_at_site(result, method, rows, words, site, " ".join(notes)) for site in sites]
    return switched(figures, [str(trace.site_layers[site]) for site in sites], "layer", sites.index(first))


def _at_site(
    result: Comparison, method: str, rows: Int[Tensor, " row"], words: Int[Tensor, " row"], site: int, note: str
) -> go.Figure:
    trace = result.methods[method]
    added, wanted = trace.coefficient[rows, site], trace.projection[rows, site]
    placed = placed_tokens(result, words)
    scale = _Scale(max(0.0, -float(wanted.min()), -float(added.min())), max(0.0, float(added.max()), float(wanted.max())))
    lines = placed[-1].line + 1
    styles = method_styles(result)
    figure = go.Figure()
    figure.add_trace(_bars(f"{shortened(method, 18)} adds", added, placed, scale, styles[method].color, -1))
    figure.add_trace(_bars("the prompt calls for", wanted, placed, scale, styles[PROMPT].color, 0))
    figure.add_trace(_words(result, words, trace.site_layers[site], placed, scale, added, wanted))
    _axes(figure, lines, scale)
    title = f"{escaped(shortened(method, 24))} at layer {trace.site_layers[site]}: coefficient by token"
    titled(figure, title, plot=lines * _PIXELS, top=84, bottom=10, left=54, note=note)
    figure.update_layout(barmode="overlay", legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"})
    return figure


def _bars(name: str, values: Float[Tensor, " row"], placed: list[PlacedToken], scale: _Scale, color: str, side: int) -> go.Bar:
    widths = np.array([min(_BAR, 0.46 * token.width) for token in placed], dtype=np.float32)
    return go.Bar(
        name=escaped(name),
        x=np.array([token.center for token in placed], dtype=np.float32),
        y=values.numpy(),
        base=np.array([scale.zero(token.line) for token in placed], dtype=np.float32),
        offset=widths * side,
        width=widths,
        marker={"color": color, "line": {"width": 0}},
        customdata=values.float().numpy(),  # a bar with a base says where it ends
        hovertemplate=f"{escaped(name)} %{{customdata:.3g}}<extra></extra>",
    )


def _words(
    result: Comparison,
    rows: Int[Tensor, " row"],
    layer: int,
    placed: list[PlacedToken],
    scale: _Scale,
    added: Float[Tensor, " row"],
    wanted: Float[Tensor, " row"],
) -> go.Scatter:
    """The tokens, with their numbers on hover; tokens of the prompt are in grey italics."""
    positions = result.tokens.position[rows].tolist()
    written = [
        escaped(token.text) if position >= 0 else f'<i style="color:{MUTED}">{escaped(token.text)}</i>'
        for token, position in zip(placed, positions, strict=True)
    ]
    return go.Scatter(
        x=np.array([token.center for token in placed], dtype=np.float32),
        y=np.array([scale.text(token.line) for token in placed], dtype=np.float32),
        mode="text",
        text=written,
        textfont={"family": MONO, "size": FONT_SIZE, "color": INK},
        customdata=torch.stack([added, wanted], dim=1).float().numpy(),
        hovertext=[signed(position) for position in positions],
        hovertemplate=f"%{{text}} %{{hovertext}}<br>layer {layer}<br>replacement adds %{{customdata[0]:.3g}}<br>"
        "prompt calls for %{customdata[1]:.3g}<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )


def _axes(figure: go.Figure, lines: int, scale: _Scale) -> None:
    """Label 0 and one round length on every line, and reverse the axis so that bars point down."""
    marks = [0.0] + ([round_below(scale.below)] if scale.below > 0 else [])
    figure.update_yaxes(
        range=[lines * scale.pitch, 0],
        tickmode="array",
        tickvals=[scale.zero(line) + mark for line in range(lines) for mark in marks],
        ticktext=[f"{mark:g}" for mark in marks] * lines,
        gridcolor=GRID,
        title_text="coefficient (activation units)" if lines > 1 else "coefficient",
        title_font_size=SMALL,
    )
    text_axes(figure, _PIXELS / scale.pitch)
