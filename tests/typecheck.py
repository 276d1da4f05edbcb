"""The run-time type checker of the tests: beartype, with the numeric tower of PEP 484 (where an int will do for a float)."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and result whenever it is called.

    Left out for speed are hooks, which are made anew for every batch and take nothing but bare tensors, and whether a model is a
    `HookedModel`: a bridge answers that by listing all its hook points, a millisecond at every call.
    """
    if "<locals>" in function.__qualname__:
        return function
    for name, hint in function.__annotations__.items():
        if getattr(hint, "__name__", None) == "HookedModel":
            function.__annotations__[name] = Any
    return _beartype(function)
