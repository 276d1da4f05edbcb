"""Texts cut to a length, for labels, messages and one-line descriptions."""

from __future__ import annotations


def shortened(text: str, width: int) -> str:
    """Text cut to `width` characters, with an ellipsis at the end if it was longer."""
    return text if len(text) <= width else text[: width - 1] + "…"


def on_one_line(text: str, width: int = 80) -> str:
    """Text with every run of white space as one space, cut to `width` characters."""
    return shortened(" ".join(text.split()), width)


def quoted(text: str, width: int = 48) -> str:
    """The beginning of a text in quotes, with line breaks escaped."""
    return repr(shortened(text, width))
