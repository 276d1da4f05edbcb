"""Checks of the arguments of figures, beyond their types."""

from __future__ import annotations

from psr_lens._utils.numbers import is_whole
from psr_lens.errors import InputError


def check_most(value: int, argument: str) -> None:
    """Refuse a limit that is not a positive whole number.

    Raises:
        InputError: it is not.
    """
    if not is_whole(value) or value < 1:
        raise InputError(argument, repr(value), "1 or more")
