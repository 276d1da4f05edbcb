"""Checks of the arguments of figures and reports."""

from __future__ import annotations

import numpy as np

from psr_lens.errors import InputError


def check_result(value: object, kinds: type | tuple[type, ...], made_by: str, argument: str = "result") -> None:
    """Refuse a value of the wrong type.

    Args:
        value: What was passed.
        kinds: The types that are accepted.
        made_by: What makes them, for the message: "`psr.compare`".
        argument: Name of the argument.

    Raises:
        InputError: the value has another type.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds):
        expected = " or ".join(_with_article(kind.__name__) for kind in kinds)
        raise InputError(argument, described(value), f"{expected} from {made_by}")


def check_most(value: object, argument: str) -> None:
    """Refuse a limit that is not a positive whole number.

    Raises:
        InputError: it is not.
    """
    if not is_int(value) or int(value) < 1:  # type: ignore[call-overload]
        raise InputError(argument, repr(value), "1 or more")


def is_int(value: object) -> bool:
    """Whether a value is a whole number, NumPy's included."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def described(value: object) -> str:
    """A value's type with its article, for messages: "a list"; None is "None"."""
    return "None" if value is None else _with_article(type(value).__name__)


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
