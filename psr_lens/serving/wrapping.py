"""Calling a function in place of one of vLLM's."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any


def owner_of(module: str, owner: str) -> Any:
    """A class of a module, or the module itself if `owner` is empty; None if there is no such thing."""
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    return getattr(found, owner, None) if owner else found


def wrap(at: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Have `wrapper(original, *arguments)` called in place of a function or method, once however often it is asked for."""
    original = getattr(at, name)
    if hasattr(original, "_psr_lens"):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    wrapped._psr_lens = True  # type: ignore[attr-defined]
    setattr(at, name, wrapped)
