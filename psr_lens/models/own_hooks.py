"""The mark of psr_lens's own hooks, by which they are told from those of others, and from those that act in another thread alone."""

from __future__ import annotations

import functools
import threading
from typing import Any


class OwnHook:
    """A hook of psr_lens, or the object whose methods are hooks."""

    def acts_here(self) -> bool:
        """Whether it changes what calls of this thread compute."""
        return True

    def refuses_here(self) -> bool:
        """Whether calls of this thread are refused while it is there."""
        return False


class OfThisThread(OwnHook):
    """A hook that acts in the thread that made it, and not where another thread calls the model meanwhile."""

    def __init__(self, hook: Any) -> None:
        """Keep the hook, of a hook point or of a module."""
        self._hook, self._thread = hook, threading.get_ident()

    def acts_here(self) -> bool:
        """Whether this is the thread that made it."""
        return threading.get_ident() == self._thread

    def __call__(self, *given: Any, **named: Any) -> Any:
        """What the hook returns; None in other threads, which changes nothing."""
        return self._hook(*given, **named) if self.acts_here() else None


def own_hook(hook: Any) -> OwnHook | None:
    """The hook of psr_lens that a function on a module is, or is a method of, or that TransformerLens has wrapped; None for others."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    for each in (hook, getattr(hook, "__self__", None), *_closed_over(hook)):
        if isinstance(each, OwnHook):
            return each
    return None


def _closed_over(hook: Any) -> list[Any]:
    """What TransformerLens's function around a hook holds; nothing for other functions, which may do more than the hook inside them."""
    if not str(getattr(hook, "__globals__", {}).get("__name__")).startswith("transformer_lens."):
        return []
    return [cell.cell_contents for cell in hook.__closure__ or ()]
