"""Sampled text made safe for JSON, tokenizers and one-line messages."""

from __future__ import annotations

import re
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]")


def sendable(text: str) -> str:
    """The text with � for every lone surrogate and every control character except tab, line feed and carriage return.

    A surrogate pair becomes the character that it encodes.
    """
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _CONTROL.sub("\ufffd", whole)
