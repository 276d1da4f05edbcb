"""Hooks for the length of a `with` block: like `model.hooks(fwd_hooks=…)`, but fast on a TransformerLens 3 bridge, and safe in threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from psr_lens.errors import InputError
from psr_lens.models.hooked_model import HookedModel, has_hooked_transformer, is_bridge
from psr_lens.models.own_hooks import OfThisThread

_lock = threading.RLock()


class TemporaryHooks(list[tuple[str, Any]]):
    """Names and hooks that themselves tell calls of one thread from those of another."""

    def begin(self) -> None:
        """They are about to be added, in this thread."""


@contextmanager
def hooked(model: HookedModel, hooks: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Add forward hooks to a model and remove them at the end of the block; other hooks stay, also those that other threads add.

    The hooks act in this thread alone, unless they are `TemporaryHooks`.

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
    if isinstance(hooks, TemporaryHooks):
        hooks.begin()
    else:
        hooks = [(name, OfThisThread(hook)) for name, hook in hooks]
    as_it_does = is_bridge(model) and not has_hooked_transformer()  # TransformerLens 4 removes the very hooks that it added
    block = model.hooks(fwd_hooks=list(hooks)) if as_it_does else _one_by_one(cast(Any, model), hooks)
    with _lock:
        block.__enter__()
    try:
        yield
    finally:
        with _lock:
            block.__exit__(None, None, None)


@contextmanager
def _one_by_one(model: Any, hooks: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Add hooks and remove these alone: in TransformerLens 3, blocks that end in another order remove each other's."""
    added: list[tuple[Any, Any]] = []
    model.context_level += 1  # so that removing hooks by level inside the block leaves ours alone
    try:
        for name, hook in hooks:
            added.append(_added(model, name, hook))
        yield
    finally:
        for point, handle in added:
            handle.hook.remove()
            point.fwd_hooks = [each for each in point.fwd_hooks if each is not handle]
        model.context_level -= 1


def _added(model: Any, name: str, hook: Any) -> tuple[Any, Any]:
    """Add a hook; return its point and handle."""
    if not is_bridge(model):
        model.add_hook(name, hook, level=model.context_level)
        point = model.hook_dict[name]
        return point, point.fwd_hooks[-1]
    point = model.get_hook_point(name) or model.hook_dict.get(name)
    if point is None:
        raise InputError("hook", repr(name), "a hook point of the model", "`psr_lens.hook_points(model)` lists them.")
    model.check_hooks_to_add(point.name)
    point.add_hook(hook, level=model.context_level)
    return point, point.fwd_hooks[-1]
