"""Tokens set like words on a page, for figures that are text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from psr_lens.plots.tokens import shortened

LINE: Final = 42
"""Characters of a line: at 12 pixels of fixed-width type it fits a window of 390 pixels."""
LONGEST: Final = 16
"""Characters of a token that are shown."""


@dataclass(frozen=True)
class Place:
    """Where one token stands."""

    text: str
    """What is written."""
    line: int
    """Line of the text."""
    center: float
    """Characters from the left edge to the token's middle."""
    width: float
    """Characters from the token's left edge to the next one's."""


def flow(texts: Sequence[str], least: int) -> list[Place]:
    """Lines of at most `LINE` characters, a new one after a line break.

    Args:
        texts: Readable tokens.
        least: Least characters that a token takes up.
    """
    places: list[Place] = []
    line, at = 0, 0
    for text in texts:
        shown = shortened(text, LONGEST)
        width = max(least, len(shown) + 1)
        if at and at + width > LINE:
            line, at = line + 1, 0
        places.append(Place(shown, line, at + width / 2, width))
        at += width
        if "↵" in text:
            line, at = line + 1, 0
    return places
