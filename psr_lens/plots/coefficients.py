"""What a replacement adds to each token, hung under the response's text beside what the prompt calls for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import plotly.graph_objects as go
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PROMPT
from psr_lens.plots.flow import LINE, Place, flow
from psr_lens.plots.style import GRID, INK, MONO, MUTED, SMALL, escaped, method_styles, round_below, titled
from psr_lens.plots.tokens import row_labels, rows_of, shortened, site_of, trace_of
from psr_lens.prompts.token_text import readable

MAX_TOKENS: Final = 400
"""Of a longer response the first tokens are drawn."""

_SLOT: Final = 5
"""Least characters of a token's place, so that two bars fit under it."""
_BAR: Final = 1.4
"""Width of a bar in characters."""
_PIXELS: Final = 84
"""Height of a line of text with its bars."""
_TEXT: Final = 0.5
_GAP: Final = 0.2
"""Heights of the text and of the space under the bars, in shares of the longest bar."""


@dataclass(frozen=True)
class _Scale:
    """Heights on the page in the activation's units, downwards, so that a bar's length is its value."""

    above: float
    """Longest bar that points up: the prompt pushes against the direction."""
    below: float
    """Longest bar that hangs down."""

    @property
    def longest(self) -> float:
        """Room for the bars of one line."""
        return self.above + self.below or 1.0

    @property
    def pitch(self) -> float:
        """From one line to the next."""
        return self.longest * (_TEXT + 1 + _GAP)

    def text(self, line: int) -> float:
        """Middle of a line's letters."""
        return line * self.pitch + self.longest * _TEXT * 0.6

    def zero(self, line: int) -> float:
        """Where a line's bars begin."""
        return line * self.pitch + self.longest * _TEXT + self.above


def coefficient_text(result: Comparison, method: str, triplet: int = 0, layer: int | None = None) -> go.Figure:
    """One response as text, with two bars hanging under each token: what the replacement adds and what the prompt calls for.

    The first is `α·‖λ(A)·z‖`, the second the part of (prompted activation − arriving activation) along the replacement's directions:
    the same units, one scale. A prompt that pushes against the direction gives a bar upwards, which a ReLU cannot follow.

    Args:
        result: What `compare` returned.
        method: Which replacement.
        triplet: Which response.
        layer: One at which the replacement acts; by default the one where it adds most.

    Returns:
        A figure with two bar traces whose lengths `y` are in the activation's units.

    Raises:
        InputError: no such response or replacement, or it does not act at that layer.
    """
    every = rows_of(result, triplet)
    trace = trace_of(result, method)
    site = site_of(trace, method, layer)
    rows = every[:MAX_TOKENS]
    added, wanted = trace.coefficient[rows, site], trace.projection[rows, site]
    places = flow(readable([result.tokens.strings[row] for row in rows.tolist()], result.tokens.strings), _SLOT)
    scale = _Scale(max(0.0, -float(wanted.min())), max(0.0, float(added.max()), float(wanted.max())))
    lines = places[-1].line + 1
    styles = method_styles(result)
    figure = go.Figure()
    figure.add_trace(_bars(f"{shortened(method, 18)} adds", added, places, scale, styles[method].color, -1))
    figure.add_trace(_bars("the prompt calls for", wanted, places, scale, styles[PROMPT].color, 0))
    figure.add_trace(_words(result, rows, trace.site_layers[site], places, scale, added, wanted))
    _axes(figure, lines, scale)
    title = f"{escaped(shortened(method, 24))} at layer {trace.site_layers[site]}, token by token"
    note = "" if len(rows) == len(every) else f"The first {len(rows):,} of {len(every):,} tokens."
    titled(figure, title, plot=lines * _PIXELS, top=84, bottom=10, left=54, note=note)
    figure.update_layout(barmode="overlay", legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"})
    return figure


def _bars(name: str, values: Float[Tensor, " row"], places: list[Place], scale: _Scale, color: str, side: int) -> go.Bar:
    return go.Bar(
        name=escaped(name),
        x=[place.center for place in places],
        y=values.numpy(),
        base=[scale.zero(place.line) for place in places],
        offset=[_BAR * side] * len(places),
        width=[_BAR] * len(places),
        marker={"color": color, "line": {"width": 0}},
        hoverinfo="skip",
    )


def _words(
    result: Comparison,
    rows: Int[Tensor, " row"],
    layer: int,
    places: list[Place],
    scale: _Scale,
    added: Float[Tensor, " row"],
    wanted: Float[Tensor, " row"],
) -> go.Scatter:
    """The tokens themselves, which carry the numbers to read on hover; those of the prompt are set in grey italics."""
    written, hover = [], []
    columns = (places, row_labels(result, rows, width=40), result.tokens.position[rows].tolist(), added.tolist(), wanted.tolist())
    for place, label, position, one, other in zip(*columns, strict=True):
        text = escaped(place.text)
        written.append(text if position >= 0 else f'<i style="color:{MUTED}">{text}</i>')
        hover.append(f"{label}<br>layer {layer}<br>added {one:.3g}<br>called for {other:.3g}".replace("for -", "for −"))
    return go.Scatter(
        x=[place.center for place in places],
        y=[scale.text(place.line) for place in places],
        mode="text",
        text=written,
        textfont={"family": MONO, "size": 12, "color": INK},
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
        cliponaxis=False,
    )


def _axes(figure: go.Figure, lines: int, scale: _Scale) -> None:
    """Mark 0 and one round length on every line, and turn the axis so that bars hang."""
    marks = [0.0] + ([round_below(scale.below)] if scale.below > 0 else [])
    figure.update_yaxes(
        range=[lines * scale.pitch, 0],
        tickmode="array",
        tickvals=[scale.zero(line) + mark for line in range(lines) for mark in marks],
        ticktext=[f"{mark:g}" for mark in marks] * lines,
        gridcolor=GRID,
        title_text="activation units",
        title_font_size=SMALL,
    )
    figure.update_xaxes(range=[0, LINE], visible=False)
