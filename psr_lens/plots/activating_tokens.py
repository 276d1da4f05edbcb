"""The tokens that a replacement pushes hardest, in context."""

from __future__ import annotations

from typing import Final

import plotly.graph_objects as go

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.interpretation.directions import TopToken, TopTokens
from psr_lens.plots.style import INK, MONO, MUTED, PALETTE, SMALL, escaped, titled, translucent
from psr_lens.plots.token_rows import signed
from psr_lens.prompts.token_text import joined, readable, word_starts

MAX_ROWS: Final = 40
"""Most rows; of a longer list, the first tokens are drawn."""

_ROW: Final = 24
_AROUND: Final = 11
"""Characters of context on either side."""
_WORD: Final = 11


@checks_arguments
def top_tokens(result: TopTokens) -> go.Figure:
    """One row per token: the token in bold in its context, and a bar for its coefficient, to the left if it is below 0.

    Args:
        result: Result of `psr.top_tokens`.

    Returns:
        A figure with one bar trace; `x` holds coefficients in the activation's units.

    Raises:
        InputError: not a `TopTokens`, or one without tokens.

    Example:
        >>> figure = psr.plots.top_tokens(psr.top_tokens(model, triplets[:4], pirate, 3))
        >>> len(figure.data[0].x)
        3
    """
    if not result.tokens:
        raise InputError("result", f"no token with a coefficient other than 0 among {result.searched:,}", "at least one")
    shown = result.tokens[:MAX_ROWS]
    alphabet = [text for each in result.tokens for text in (*each.before, each.token, *each.after)]
    low, high = min(0.0, *(each.coefficient for each in shown)), max(0.0, *(each.coefficient for each in shown))
    colours = [PALETTE["A-PSR" if each.coefficient > 0 else "prompt"] for each in shown]
    figure = go.Figure(
        go.Bar(
            orientation="h",
            x=[each.coefficient for each in shown],
            y=list(range(len(shown))),
            width=0.86,
            marker={"color": [translucent(colour, 0.35) for colour in colours], "line": {"width": 0}},
            text=[f"{each.coefficient:.3g}".replace("-", "−") for each in shown],
            textposition="inside",
            insidetextanchor="end",
            textangle=0,
            textfont={"size": SMALL, "color": INK},
            customdata=[[each.triplet, signed(each.position)] for each in shown],
            hovertext=[_line(each, alphabet, 60) for each in shown],
            hovertemplate="%{hovertext}<br>coefficient %{x:.4g}<br>response %{customdata[0]}, position %{customdata[1]}<extra></extra>",
        )
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(shown))),
        ticktext=[_line(each, alphabet, _AROUND) for each in shown],
        tickfont={"family": MONO, "size": SMALL},
        range=[len(shown) - 0.5, -0.5],
        showgrid=False,
        automargin=True,
    )
    what = "coefficient" if result.direction is None else f"λ of direction {result.direction}"
    figure.update_xaxes(title_text=what, range=[1.02 * low, 1.02 * high], nticks=4)
    where = result.hook if result.layer is None else f"layer {result.layer}"
    notes = [f"{result.active:,} of {result.searched:,} tokens have a coefficient other than 0."]
    if low < 0:
        notes.append("Bars to the left: pushed backwards.")
    if len(shown) < len(result.tokens):
        notes.append(f"The first {len(shown)} of {len(result.tokens)}.")
    return titled(
        figure,
        f"Tokens pushed hardest at {escaped(where)}",
        plot=len(shown) * _ROW,
        top=48,
        bottom=48,
        note=" ".join(notes),
        wide=16,
    )


def _line(each: TopToken, alphabet: list[str], around: int) -> str:
    before, after = joined(each.before, alphabet), joined(each.after, alphabet)
    starts = word_starts([*each.before, each.token, *each.after], alphabet)[len(each.before) :]
    gaps = [" " if begins else "" for begins in (*starts, True)]
    left = before if len(before) <= around else "…" + before[len(before) - around + 1 :]
    word = escaped(shortened(readable([each.token], alphabet)[0], _WORD))
    context = f'<span style="color:{MUTED}">'
    return f"{context}{escaped(left)}</span>{gaps[0]}<b>{word}</b>{gaps[1]}{context}{escaped(shortened(after, around))}</span>"
