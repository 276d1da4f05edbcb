"""Hooks for the length of a `with` block, as `model.hooks(fwd_hooks=…)` adds them, without its cost on a bridge of TransformerLens 3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from psr_lens.errors import InputError
from psr_lens.models.hooked_model import HookedModel, has_hooked_transformer, is_bridge


@contextmanager
def hooked(model: HookedModel, hooks: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Add forward hooks to a model, and take them off at the end of the block; others stay.

    A bridge of TransformerLens 3 makes the dictionary of all its hook points and aliases anew for every hook that it is asked to add.
    That takes seconds where every hook point of a deep model is read, and most of the time of a step of training where each layer has a
    hook. There each point is looked up by itself.

    Args:
        model: The model.
        hooks: Names of hook points and what is to be called there.

    Raises:
        InputError: the bridge has no hook point of that name.
        ValueError, AssertionError, KeyError: what TransformerLens itself raises where a point is behind a switch that is off, or is none.
    """
    if not (is_bridge(model) and has_hooked_transformer()):
        with model.hooks(fwd_hooks=list(hooks)):
            yield
        return
    bridge, added = cast(Any, model), []
    bridge.context_level += 1  # so that what is added within the block, and taken off by level, leaves ours alone
    try:
        for name, hook in hooks:
            point = bridge.get_hook_point(name) or model.hook_dict.get(name)
            if point is None:
                raise InputError("hook", repr(name), "a hook point of the model", "`psr_lens.hook_points(model)` lists them.")
            bridge.check_hooks_to_add(point.name)
            point.add_hook(hook, level=bridge.context_level)
            added.append((point, point.fwd_hooks[-1]))
        yield
    finally:
        for point, handle in added:  # each by itself: blocks need not end in the order in which they began
            handle.hook.remove()
            point.fwd_hooks = [each for each in point.fwd_hooks if each is not handle]
        bridge.context_level -= 1
