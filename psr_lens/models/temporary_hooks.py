"""Hooks for the length of a `with` block: like `model.hooks(fwd_hooks=…)`, but fast on a TransformerLens 3 bridge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from psr_lens.errors import InputError
from psr_lens.models.hooked_model import HookedModel, has_hooked_transformer, is_bridge


@contextmanager
def hooked(model: HookedModel, hooks: Sequence[tuple[str, Any]]) -> Iterator[None]:
    """Add forward hooks to a model and remove them at the end of the block; other hooks stay.

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
    if not (is_bridge(model) and has_hooked_transformer()):
        with model.hooks(fwd_hooks=list(hooks)):
            yield
        return
    bridge, added = cast(Any, model), []
    bridge.context_level += 1  # so that removing hooks by level inside the block leaves ours alone
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
        for point, handle in added:  # one by one: blocks need not end in the order in which they began
            handle.hook.remove()
            point.fwd_hooks = [each for each in point.fwd_hooks if each is not handle]
        bridge.context_level -= 1
