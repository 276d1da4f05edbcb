"""Numbers as users give them, Python's and NumPy's alike, and as messages show them."""

from __future__ import annotations

import sys
from dataclasses import fields
from numbers import Integral, Real
from typing import Any


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, of Python or of NumPy; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value is a real number that a float can hold, of Python or of NumPy; True and False are not, NaN and infinity are."""
    if isinstance(value, Integral):
        return is_whole(value) and abs(int(value)) <= sys.float_info.max
    return isinstance(value, Real)


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural where that is right: `1 token`, `1,234 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def use_plain_numbers(settings: Any) -> None:
    """Make NumPy's numbers in the fields of a dataclass Python's, also in tuples: JSON holds no others, and digests tell them apart."""
    for each in fields(settings):
        if each.init:
            object.__setattr__(settings, each.name, _plain(getattr(settings, each.name)))


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_plain, value))
    if isinstance(value, bool | int) or not is_real(value):
        return value
    return int(value) if is_whole(value) else float(value)
