"""Hooks and replaced `forward` methods on a model beside those that are there whenever it is loaded."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final

import torch

from psr_lens.models import cache_argument
from psr_lens.models.hooked_model import HookedModel, all_modules, named_modules_of
from psr_lens.models.own_hooks import own_hook

_LOADED_WITH: Final = ("transformer_lens.", "transformers.", cache_argument.__name__)
"""Modules whose hooks are on a model from when it is loaded, and change nothing."""

_REPLACE_FORWARD: Final = ("accelerate.", "transformer_lens.")
"""Packages that give a module a `forward` of its own when it is loaded."""


def has_hooks(model: HookedModel) -> bool:
    """Whether hooks, or a `forward` in place of a class's own, may change what the model computes in this thread.

    Hooks of TransformerLens and transformers themselves do not count, since they are the same whenever a model is loaded; nor do those of
    psr_lens that only watch, or that act in another thread alone.
    """
    return any(map(module_has_hooks, all_modules(model)))


def where_hooked(model: torch.nn.Module) -> str | None:
    """Which module has hooks for which `has_hooks` is true, and of which kind; None if there is none."""
    for name, module in named_modules_of(model):
        if (kind := _hooked(module)) is not None:
            return kind if kind == _EVERYWHERE else f"{kind} on {name or 'the model itself'}"
    return None


def module_has_hooks(module: torch.nn.Module) -> bool:
    """Whether a module, without its children, has forward hooks or a `forward` of others, or such hooks are set on all modules."""
    return _hooked(module) is not None


def refuses_this_thread(model: HookedModel) -> bool:
    """Whether another thread is in a block in which calls of this thread are refused."""
    hooks = (hook for module in all_modules(model) for hook in _hooks_of(module))
    return any(own.refuses_here() for own in map(own_hook, hooks) if own is not None)


_EVERYWHERE: Final = "a forward hook on all modules of torch"


def _hooked(module: torch.nn.Module) -> str | None:
    everywhere = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return _EVERYWHERE
    if "forward" in module.__dict__ and not _written_in(module.__dict__["forward"]).startswith(_REPLACE_FORWARD):
        return "a replaced `forward`"
    if not (module._forward_hooks or module._forward_pre_hooks):
        return None
    # On a hook point, TransformerLens wraps the hooks of others in its own; it has none there itself.
    is_hook_point = type(module).__name__ == "HookPoint"
    for hook in _hooks_of(module):
        own = own_hook(hook)
        if own.acts_here() if own is not None else is_hook_point or not _written_in(hook).startswith(_LOADED_WITH):
            return "a hook"
    return None


def _hooks_of(module: torch.nn.Module) -> Iterator[Any]:
    # Another thread may add or remove some meanwhile.
    yield from tuple(module._forward_hooks.values())
    yield from tuple(module._forward_pre_hooks.values())


def _written_in(function: Any) -> str:
    """The module that has a function's code, whatever the function says: a wrapper may have the name of what it wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return str(getattr(function, "__globals__", {}).get("__name__", getattr(function, "__module__", None)))
