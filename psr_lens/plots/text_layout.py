"""Tokens laid out in lines of text, for figures that show a response as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from psr_lens.plots.token_rows import shortened

LINE: Final = 42
"""Characters per line; with a 12-pixel monospaced font it fits a window of 390 pixels."""
LONGEST: Final = 16
"""Most characters shown of one token."""


@dataclass(frozen=True)
class PlacedToken:
    """One token on the page."""

    text: str
    """The text shown."""
    line: int
    """Index of its line."""
    center: float
    """Its middle, in characters from the left edge."""
    width: float
    """Characters from its left edge to that of the next token."""


def in_lines(texts: Sequence[str], least: int) -> list[PlacedToken]:
    """Tokens in lines of at most `LINE` characters; a line break in a token starts a new line.

    Args:
        texts: Readable tokens.
        least: Smallest width of a token, in characters.
    """
    placed: list[PlacedToken] = []
    line, at = 0, 0
    for text in texts:
        shown = shortened(text, LONGEST)
        width = max(least, len(shown) + 1)
        if at and at + width > LINE:
            line, at = line + 1, 0
        placed.append(PlacedToken(shown, line, at + width / 2, width))
        at += width
        if "↵" in text:
            line, at = line + 1, 0
    return placed
