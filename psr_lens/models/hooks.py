"""Hooks for the length of a `with` block, as `model.hooks(fwd_hooks=…)` adds them, in a time that does not grow with the model's names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, cast

from transformer_lens.hook_points import HookPoint

from psr_lens.errors import InputError
from psr_lens.models.hooked_model import HookedModel, has_hooked_transformer, is_bridge


@contextmanager
def hooked(model: HookedModel, hooks: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Add forward hooks to a model, and take them off at the end of the block; others stay.

    A bridge of TransformerLens 3 makes the dictionary of all its hook points and aliases anew for every hook that it is asked to add,
    which takes seconds where every hook point of a deep model is read, and most of the time of a step of training where each layer has
    a hook. There the points are looked up one by one, and added and removed as the bridge itself does it.

    Args:
        model: The model.
        hooks: Names of hook points and what is to be called there.

    Raises:
        InputError: the bridge has no hook point of that name.
    """
    if not (is_bridge(model) and has_hooked_transformer()):
        with model.hooks(fwd_hooks=list(hooks)):
            yield
        return
    bridge, points = cast(Any, model), []
    bridge.context_level += 1
    level = bridge.context_level
    try:
        for name, hook in hooks:
            point = _point(model, name)
            bridge.check_hooks_to_add(point.name)
            point.add_hook(hook, level=level)
            points.append(point)
        yield
    finally:
        for point in points:
            point.remove_hooks("fwd", level=level)
        bridge.context_level = level - 1


def _point(model: HookedModel, name: str) -> HookPoint:
    """The hook point of a name; an alias leads to the point that it stands for."""
    found = reduce(lambda part, step: getattr(part, step, None), name.split("."), cast(Any, model))
    if isinstance(found, HookPoint):
        return found
    known = model.hook_dict.get(name)
    if known is None:
        raise InputError("hook", repr(name), "a hook point of the model", "`psr_lens.hook_points(model)` lists them.")
    return cast(HookPoint, known)
