"""Hooks, replaced methods and changed attributes on a model beside those that are there whenever it is loaded."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Iterable
from typing import Any, Final

import torch

from psr_lens.models import cache_argument
from psr_lens.models.hooked_model import HookedModel, all_modules

_LOADED_WITH: Final = ("transformer_lens.", "transformers.", cache_argument.__name__)
"""Modules whose hooks are on a model from when it is loaded, and change nothing."""

_FUNCTIONS: Final = (types.FunctionType, types.BuiltinFunctionType, functools.partial)
_VALUES: Final = (bool, int, float, str, torch.dtype, *_FUNCTIONS)
_CHANGE_BY_THEMSELVES: Final = ("training", "forward", "max_seq_len_cached")
"""Attributes that are seen otherwise, or that a call changes: the longest text that a RoPE has met so far."""

_REPLACE_FORWARD: Final = ("accelerate.", "transformer_lens.")
"""Packages that give a module a `forward` of its own when it is loaded."""


def has_hooks(model: HookedModel) -> bool:
    """Whether hooks, or other functions, settings or modules in a module than when the model was loaded, may change what it computes.

    Hooks of TransformerLens and transformers themselves do not count: they are the same whenever a model is loaded. Functions are a
    `forward` or an MLP's `act_fn`, settings numbers and texts such as a norm's `eps`; of models that `load_model` has not seen, only a
    `forward` in place of the class's own is noticed.
    """
    modules = all_modules(model)
    loaded = _attributes.get(model)
    return any(map(module_has_hooks, modules)) or (loaded is not None and loaded != _attributes_of(model, modules))


_attributes: weakref.WeakKeyDictionary[Any, dict[int, tuple[Any, ...]]] = weakref.WeakKeyDictionary()


def record_attributes(model: HookedModel) -> None:
    """Keep what a model's modules are like, to see later whether somebody has changed one."""
    _attributes[model] = _attributes_of(model, all_modules(model))


def _attributes_of(model: HookedModel, modules: Iterable[torch.nn.Module]) -> dict[int, tuple[Any, ...]]:
    """Those of each module by its address; without those of the model itself, which TransformerLens changes, and of hook points."""
    return {id(module): _attributes_of_one(module) for module in modules if id(module) != id(model) and not _is_hook_point(module)}


def _attributes_of_one(module: torch.nn.Module) -> tuple[Any, ...]:
    """Its numbers, texts and functions by name, and the modules in it."""
    found = tuple(
        (name, (id(value), getattr(value, "__qualname__", None)) if isinstance(value, _FUNCTIONS) else value)
        for name, value in vars(module).items()
        if isinstance(value, _VALUES) and not name.startswith("_") and name not in _CHANGE_BY_THEMSELVES
    )
    return found, tuple((name, id(inner)) for name, inner in module._modules.items() if not _is_hook_point(inner))


def _is_hook_point(module: object) -> bool:
    """Told by the name of the class, for which TransformerLens need not be there."""
    return type(module).__name__ == "HookPoint"


def module_has_hooks(module: torch.nn.Module) -> bool:
    """Whether a module, without its children, has forward hooks or a `forward` of others, or such hooks are set on all modules."""
    everywhere = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return True
    if "forward" in module.__dict__ and not _written_in(module.__dict__["forward"]).startswith(_REPLACE_FORWARD):
        return True
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False
    # On a hook point, TransformerLens wraps the hooks of others in its own.
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return _is_hook_point(module) or not all(_written_in(hook).startswith(_LOADED_WITH) for hook in hooks)


def _written_in(function: Any) -> str:
    """The module that has a function's code, whatever the function says: a wrapper may have the name of what it wraps."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return str(getattr(function, "__globals__", {}).get("__name__", getattr(function, "__module__", None)))
