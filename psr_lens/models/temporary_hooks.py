"""Hooks for the length of a `with` block: like `model.hooks(fwd_hooks=…)`, but fast on a TransformerLens 3 bridge, and safe in threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from psr_lens.errors import InputError
from psr_lens.models.hooked_model import HookedModel, has_hooked_transformer, is_bridge

_lock = threading.RLock()


class TemporaryHooks(list[tuple[str, Any]]):
    """Names and hooks that need to know when `hooked` has added them and is about to remove them."""

    def begin(self) -> None:
        """They are about to be added, in this thread."""

    def end(self) -> None:
        """They have been removed."""


@contextmanager
def hooked(model: HookedModel, hooks: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Add forward hooks to a model and remove them at the end of the block; other hooks stay, also those that other threads add.

    For every hook that it adds, a TransformerLens 3 bridge rebuilds the dictionary of all its hook points and aliases. That takes
    seconds if every hook point of a deep model is read, and dominates a training step with a hook at each layer. So on such a bridge
    each point is looked up by itself.

    Args:
        model: The model.
        hooks: Names of hook points, each with the function to call there.

    Raises:
        InputError: the bridge has no hook point of that name.
        ValueError, AssertionError, KeyError: from TransformerLens itself, if a point does not exist or its config switch is off.
    """
    added: list[tuple[Any, Any]] = []
    if isinstance(hooks, TemporaryHooks):
        hooks.begin()
    with _lock:
        cast(Any, model).context_level += 1  # so that removing hooks by level inside the block leaves ours alone
    try:
        for name, hook in hooks:
            with _lock:
                added.append(_added(cast(Any, model), name, hook))
        yield
    finally:
        with _lock:
            for point, handle in added:  # one by one: blocks need not end in the order in which they began
                handle.hook.remove()
                point.fwd_hooks = [each for each in point.fwd_hooks if each is not handle]
            cast(Any, model).context_level -= 1
        if isinstance(hooks, TemporaryHooks):
            hooks.end()


def _added(model: Any, name: str, hook: Any) -> tuple[Any, Any]:
    """Add a hook; return its point and handle."""
    if not (is_bridge(model) and has_hooked_transformer()):
        model.add_hook(name, hook, level=model.context_level)
        point = model.hook_dict[name]
        return point, point.fwd_hooks[-1]
    point = model.get_hook_point(name) or model.hook_dict.get(name)
    if point is None:
        raise InputError("hook", repr(name), "a hook point of the model", "`psr_lens.hook_points(model)` lists them.")
    model.check_hooks_to_add(point.name)
    point.add_hook(hook, level=model.context_level)
    return point, point.fwd_hooks[-1]
