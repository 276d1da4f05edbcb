"""Tokens laid out in lines of text, for figures that show a response as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import plotly.graph_objects as go
from jaxtyping import Int
from torch import Tensor

from psr_lens._utils.short_text import shortened
from psr_lens.plots.look import room
from psr_lens.plots.token_rows import Tokened
from psr_lens.prompts.token_text import readable_text, word_starts

LONGEST: Final = 16
"""Most characters shown of one token."""
FONT_SIZE: Final = 11
"""Size of the letters in pixels."""
STRIP: Final = 22
"""Height of a strip in pixels."""
EDGE: Final = 0.06
"""Space between tokens of one word, in characters."""
_GAP: Final = 0.55
"""Space between lines of text, in strip heights."""
_CHARACTER: Final = 6.7
"""Width of a character in pixels; in monospaced fonts of size 11 it is at most that."""
_BESIDE: Final = 122
"""Pixels beside the text, for labels and edges."""


@dataclass(frozen=True)
class PlacedToken:
    """One token on the page."""

    text: str
    """The text shown."""
    line: int
    """Index of its line."""
    left: float
    """Its left edge, in characters from that of the line."""
    width: float
    """Its width, in characters."""

    @property
    def center(self) -> float:
        """Its middle, in characters from the left edge of the line."""
        return self.left + self.width / 2


def line_length() -> int:
    """Characters per line of a figure's text: 40 in a window of 390 pixels."""
    return max(LONGEST, int((room() - _BESIDE) / _CHARACTER))


def placed_tokens(result: Tokened, words: Int[Tensor, " row"]) -> list[PlacedToken]:
    """Some tokens of a result as lines of text."""
    strings = [result.tokens.strings[row] for row in words.tolist()]
    texts = readable_text(strings, result.tokens.strings)
    breaks = ["↵" in text and position >= 0 for text, position in zip(texts, result.tokens.position[words].tolist(), strict=True)]
    return in_lines(texts, word_starts(strings, result.tokens.strings), breaks)


def in_lines(texts: Sequence[str], starts: Sequence[bool], breaks: Sequence[bool]) -> list[PlacedToken]:
    """Tokens in lines of at most `line_length()` characters, with a space before a word and none inside.

    A word that does not fit on a line goes to the next one, and is broken only if it is longer than a line.

    Args:
        texts: Readable tokens.
        starts: Whether each token begins a word.
        breaks: Whether each token is a line break in the text; a new line starts after the last of several in a row.
    """
    shown = [shortened(text, LONGEST) for text in texts]
    ends = [here and not after for here, after in zip(breaks, [*breaks[1:], False], strict=True)]
    words: list[list[int]] = []
    for index, begins in enumerate(starts):
        if begins or not words or ends[index - 1]:
            words.append([])
        words[-1].append(index)
    placed: list[PlacedToken] = []
    longest = line_length()
    line, at = 0, 0
    for word in words:
        length = sum(len(shown[index]) for index in word)
        if at and at + 1 + length > longest:
            line, at = line + 1, 0
        elif at:
            at += 1
        for index in word:
            width = len(shown[index])
            if at and at + width > longest:
                line, at = line + 1, 0
            placed.append(PlacedToken(shown[index], line, at, width))
            at += width
            if ends[index]:
                line, at = line + 1, 0
    return placed


def text_axes(figure: go.Figure, pixels: float) -> None:
    """Give characters the width of their letters in a window of any width, so that letters of one word touch.

    Args:
        figure: The figure, with characters across, which is changed in place.
        pixels: Height of a unit of the vertical axis.
    """
    figure.update_xaxes(
        range=[0, line_length()],
        visible=False,
        scaleanchor="y",
        scaleratio=_CHARACTER / pixels,
        constrain="domain",
        constraintoward="left",
    )
    figure.update_yaxes(constrain="domain", constraintoward="top")


def strip_tops(below: Sequence[float]) -> list[float]:
    """Vertical places in a line of text that is drawn as strips above each other, with some space below each strip, in strip heights.

    Returns:
        The upper edge of each strip, then the distance from one line of text to the next.
    """
    tops = [0.0]
    for each in below:
        tops.append(tops[-1] + 1 + each)
    return [*tops[:-1], tops[-1] + _GAP]


def strip_axes(figure: go.Figure, labels: Mapping[float, str], lines: int, pitch: float) -> None:
    """Axes of lines of text that are drawn as strips above each other, and the colour bar that bars do not have of their own.

    Args:
        figure: The figure, with bars for the tokens of each strip, which is changed in place.
        labels: What stands beside each line, by its vertical place in the line, in strip heights.
        lines: Number of lines.
        pitch: Distance from one line to the next, in strip heights.
    """
    figure.update_yaxes(
        range=[lines * pitch - _GAP + 0.1, -0.1],
        tickmode="array",
        tickvals=[line * pitch + at for line in range(lines) for at in labels],
        ticktext=[*labels.values()] * lines,
        ticklabelstandoff=4,
        showgrid=False,
        automargin=True,
    )
    text_axes(figure, STRIP)
    # Bars have no colour bar of their own; an empty trace adds it.
    figure.add_scatter(x=[None], y=[None], mode="markers", marker={"color": [0], "coloraxis": "coloraxis"}, showlegend=False)
    figure.update_layout(barmode="overlay", showlegend=False)
