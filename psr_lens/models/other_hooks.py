"""Hooks on a model beside those that are there whenever it is loaded."""

from __future__ import annotations

import functools
from typing import Any, Final

import torch
from transformer_lens.hook_points import HookPoint

from psr_lens.models import cache_argument
from psr_lens.models.hooked_model import HookedModel, all_modules

_LOADED_WITH: Final = ("transformer_lens.", "transformers.", cache_argument.__name__)
"""Modules whose hooks are on a model from when it is loaded, and change nothing."""


def has_hooks(model: HookedModel) -> bool:
    """Whether hooks may change what the model computes, whoever added them, through TransformerLens or torch.

    Those of TransformerLens and transformers themselves do not count: they are the same whenever a model is loaded.
    """
    return any(map(module_has_hooks, all_modules(model)))


def module_has_hooks(module: torch.nn.Module) -> bool:
    """Whether a module, without its children, has forward hooks of others, or such hooks are set on all modules."""
    everywhere = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return True
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False
    # On a hook point, TransformerLens wraps the hooks of others in its own.
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return isinstance(module, HookPoint) or not all(map(_is_loaded_with, hooks))


def _is_loaded_with(hook: Any) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return str(getattr(hook, "__module__", None)).startswith(_LOADED_WITH)
