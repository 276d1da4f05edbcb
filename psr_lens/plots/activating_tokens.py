"""The tokens that a replacement pushes hardest, in context."""

from __future__ import annotations

import math
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.interpretation.directions import TopToken, TopTokens
from psr_lens.plots.look import Look, draws, room
from psr_lens.plots.style import (
    INK,
    MUTED,
    PALETTE,
    SMALL,
    escaped,
    fitted,
    label_room,
    labelled_rows,
    log_ticks,
    real_units,
    text_width,
    titled,
)
from psr_lens.plots.token_rows import signed
from psr_lens.prompts.token_text import joined, readable, word_starts

MAX_ROWS: Final = 24
"""Most distinct tokens; of more, those pushed hardest are drawn."""

_ROW: Final = 40
_WORD: Final = 14
_HOVER_LINE: Final = 420
"""Width of the context in a hover text, in pixels."""
_ENDS: Final = (".", "!", "?", "↵")
_LOG_FROM: Final = 30.0
"""The axis is logarithmic if the hardest push is this many times the weakest, and all are in one direction."""


@draws
def top_tokens(result: TopTokens, **look: Unpack[Look]) -> go.Figure:
    """One row per distinct token, hardest pushed first: a dot for each place where it stands, a line over their range, and a context.

    The context is the sentence around the place where the token is pushed hardest, as much of it as there is room for; a dot has its own
    on hover. A token that stands many times in the list, such as the last one of the prompt, is one row with its count.

    Args:
        result: Result of `psr.top_tokens`.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure whose first trace has a dot for each place of the tokens that have a row, the 24 pushed hardest; `customdata` holds
        coefficients in the activation's units.

    Raises:
        InputError: not a `TopTokens`, or one without tokens.

    Example:
        >>> figure = psr.plots.top_tokens(psr.top_tokens(model, triplets[:4], pirate, 3))
        >>> len(figure.data[0].x)
        3
    """
    if not result.tokens:
        raise InputError("result", f"no token with a coefficient other than 0 among {result.searched:,}", "at least one")
    alphabet = [text for each in result.tokens for text in (*each.before, each.token, *each.after)]
    groups: dict[str, list[TopToken]] = {}
    for each in result.tokens:
        groups.setdefault(each.token, []).append(each)
    rows = list(groups.values())[:MAX_ROWS]
    labels = [_label(group, alphabet) for group in rows]
    left = label_room(labels)
    figure = go.Figure()
    sizes = [abs(each.coefficient) for group in rows for each in group]
    one_way = len({each.coefficient > 0 for group in rows for each in group}) == 1
    log = one_way and max(sizes) > _LOG_FROM * min(sizes)
    _dots(figure, rows, alphabet, log)
    _axis(figure, rows, log)
    figure.update_yaxes(labelled_rows(labels, automargin=True))
    for row, group in enumerate(rows):
        figure.add_annotation(
            text=_context(group[0], alphabet, room() - left - 20),
            x=0,
            xref="paper",
            y=row + 0.3,
            xanchor="left",
            font={"size": SMALL, "color": INK},
        )
    what = "coefficient" if result.direction is None else f"λ of direction {result.direction}"
    figure.update_xaxes(title_text=f"{what} (activation units)")
    where = result.hook if result.layer is None else f"layer {result.layer}"
    notes = [f"{result.active:,} of {result.searched:,} tokens have a coefficient other than 0."]
    if any(len(group) > 1 for group in rows):
        notes.append(f"The {len(result.tokens)} pushed hardest, one row for each distinct token.")
    if any(each.coefficient < 0 for group in rows for each in group):
        notes.append("Orange: pushed backwards.")
    if len(rows) < len(groups):
        notes.append(f"The first {len(rows)} of {len(groups)} distinct tokens.")
    title, note = f"Tokens pushed hardest at {escaped(where)}", " ".join(notes)
    titled(figure, title, plot=len(rows) * _ROW, top=48, bottom=52, left=left, note=note)
    return figure.update_layout(showlegend=False)


def _dots(figure: go.Figure, rows: list[list[TopToken]], alphabet: list[str], log: bool) -> None:
    """A dot for each token, and a line over each row's range."""
    at = [(row - 0.16, each) for row, group in enumerate(rows) for each in group]
    ranges = [
        (row - 0.16, min(each.coefficient for each in group), max(each.coefficient for each in group))
        for row, group in enumerate(rows)
    ]
    drawn = [_drawn(each.coefficient, log) for _, each in at]
    figure.add_scatter(
        x=drawn,
        y=[row for row, _ in at],
        mode="markers",
        marker={
            "color": [PALETTE["A-PSR" if each.coefficient > 0 else "prompt"] for _, each in at],
            "size": 8,
            "opacity": 0.85,
            "line": {"width": 0},
        },
        customdata=[[each.coefficient, each.triplet, signed(each.position)] for _, each in at],
        hovertext=[_context(each, alphabet, _HOVER_LINE) for _, each in at],
        hovertemplate="%{hovertext}<br>coefficient %{customdata[0]:.4g}<br>response %{customdata[1]}, "
        "position %{customdata[2]}<extra></extra>",
    )
    figure.add_scatter(
        x=[end for _, low, high in ranges for end in (_drawn(low, log), _drawn(high, log), None)],
        y=[height for row, *_ in ranges for height in (row, row, None)],
        mode="lines",
        line={"color": MUTED, "width": 2},
        hoverinfo="skip",
    )


def _drawn(coefficient: float, log: bool) -> float:
    return math.log10(abs(coefficient)) if log else coefficient


def _axis(figure: go.Figure, rows: list[list[TopToken]], log: bool) -> None:
    values = [each.coefficient for group in rows for each in group]
    if not log:
        low, high = min(0.0, *values), max(0.0, *values)
        room_for_dots = 0.04 * (high - low)
        figure.update_xaxes(range=[low - room_for_dots, high + room_for_dots], nticks=5)
        return
    sizes = [math.log10(abs(value)) for value in values]
    low, high = min(sizes) - 0.1, max(sizes) + 0.1
    ticks = log_ticks(low, high)
    sign = "" if values[0] > 0 else "−"
    figure.update_xaxes(range=[low, high], tickvals=ticks, ticktext=[sign + real_units(tick) for tick in ticks])


def _label(group: list[TopToken], alphabet: list[str]) -> str:
    word = escaped(shortened(readable([group[0].token], alphabet)[0], _WORD))
    times = f' <span style="color:{MUTED}">×{len(group)}</span>' if len(group) > 1 else ""
    return f"<b>{word}</b>{times}"


def _context(each: TopToken, alphabet: list[str], pixels: float) -> str:
    """The sentence around a token, which is bold; cut at both ends to fit a width."""
    before, after = _sentence(joined(each.before, alphabet), joined(each.after, alphabet))
    starts = word_starts([*each.before, each.token, *each.after], alphabet)[len(each.before) :]
    word = shortened(readable([each.token], alphabet)[0], _WORD)
    gaps = [" " if begins else "" for begins in (*starts, True)]
    around = pixels - text_width(f"{gaps[0]}{word}{gaps[1]}", SMALL) * 1.1  # bold letters are wider
    half = around / 2
    free = half - min(half, text_width(after, SMALL))
    left = fitted(before[::-1], half + free)[::-1]
    right = fitted(after, around - text_width(left, SMALL))
    context = f'<span style="color:{MUTED}">'
    return f"{context}{escaped(left)}</span>{gaps[0]}<b>{escaped(word)}</b>{gaps[1]}{context}{escaped(right)}</span>"


def _sentence(before: str, after: str) -> tuple[str, str]:
    """What comes before and after a token, to the ends of its sentence."""
    begins = max((before.rstrip().rfind(end) for end in _ENDS), default=-1) + 1
    if begins >= len(before.rstrip()):  # the token is the first of its sentence, or all there is ends one
        begins = 0
    ends = [at for end in _ENDS if (at := after.find(end)) >= 0]
    return before[begins:].lstrip(), after[: min(ends) + 1] if ends else after
