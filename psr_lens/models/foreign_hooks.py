"""Hooks and replaced methods on a model beside those that are there whenever it is loaded."""

from __future__ import annotations

import functools
from typing import Any, Final

import torch

from psr_lens.models import cache_argument
from psr_lens.models.hooked_model import HookedModel, all_modules

_LOADED_WITH: Final = ("transformer_lens.", "transformers.", cache_argument.__name__)
"""Modules whose hooks are on a model from when it is loaded, and change nothing."""

_REPLACE_FORWARD: Final = ("accelerate.", "transformer_lens.")
"""Packages that give a module a `forward` of its own when it is loaded."""


def has_hooks(model: HookedModel) -> bool:
    """Whether hooks, or a `forward` in place of a module's own, may change what the model computes, whoever put them there.

    Those of TransformerLens and transformers themselves do not count: they are the same whenever a model is loaded.
    """
    return any(map(module_has_hooks, all_modules(model)))


def module_has_hooks(module: torch.nn.Module) -> bool:
    """Whether a module, without its children, has forward hooks or a `forward` of others, or such hooks are set on all modules."""
    everywhere = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return True
    if "forward" in module.__dict__ and not _written_in(module.__dict__["forward"]).startswith(_REPLACE_FORWARD):
        return True
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False
    from transformer_lens.hook_points import HookPoint

    # On a hook point, TransformerLens wraps the hooks of others in its own.
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return isinstance(module, HookPoint) or not all(_written_in(hook).startswith(_LOADED_WITH) for hook in hooks)


def _written_in(function: Any) -> str:
    """The module that has a function's code, whatever the function says: a wrapper may have the name of what it wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return str(getattr(function, "__globals__", {}).get("__name__", getattr(function, "__module__", None)))
