"""The plain transformers model behind a model of TransformerLens, on the same weights: it gives the same logits in less time.

A bridge has wrapped the modules of one; they are taken out of their wrappers, at each call again, so that whatever was changed is seen. A
`HookedTransformer` keeps the one that it was loaded from, whose weights its own are views of, and is compared with it at each call.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from psr_lens.models.foreign_hooks import has_hooks, refuses_this_thread
from psr_lens.models.forward_pass import forward, position_ids
from psr_lens.models.hooked_model import HookedModel, device_of, is_bridge, is_spread, modules_below
from psr_lens.models.module_settings import is_changed, settings_digest

_TOLERANCE: Final = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Largest difference of logits that counts as rounding, relative to the largest logit, by data type."""
_TOLERANCE_ELSEWHERE: Final = 3e-2
_PROBE: Final = (2, 8)

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOK_FLAGS: Final = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


def plain_transformers(model: HookedModel) -> nn.Module | None:
    """A plain transformers model in evaluation mode with the same weights and the same logits, to be used at once and not kept.

    Returns:
        The model, whose modules are the caller's own; None if there is none, or if something stands in the way: a hook of anyone's on the
        model, settings or functions of modules that were changed since it was loaded, weights that were processed or replaced, layers on
        several devices, a `steer` block of another thread, which refuses calls of this one, or logits that differ on a probe.
    """
    if is_spread(model) or has_hooks(model) or refuses_this_thread(model):
        return None
    settings = settings_digest(model)
    if settings is None or is_changed(model, settings):
        return None
    found = held_plain_model(model)
    if found is None:
        return None
    known = _agrees.get(model)
    if known is None or known[0] != settings:
        known = _agrees[model] = settings, same_logits(model, found)
    return found if known[1] else None


def held_plain_model(model: HookedModel) -> nn.Module | None:
    """The plain transformers model whose weights a model computes with, whether or not the two compute the same.

    Returns:
        The model, whose modules are the caller's own; None if there is none, or if weights were processed, replaced or spread.
    """
    return _unwrapped(model) if is_bridge(model) else _origin(model)


_agrees: weakref.WeakKeyDictionary[Any, tuple[str, bool]] = weakref.WeakKeyDictionary()
"""What a model's modules computed with when it was compared with its plain model, and whether the two agreed."""


def same_logits(model: HookedModel, plain: nn.Module) -> bool:
    """Whether a model and a plain transformers model give a probe the same logits, up to rounding."""
    size = int(cast(Any, plain).config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(min(size, int(model.cfg.d_vocab)), _PROBE, generator=generator).to(device_of(model))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    with torch.no_grad():
        wanted = forward(model, tokens, mask)[mask.bool()]
        takes_positions = "position_ids" in inspect.signature(plain.forward).parameters
        given = {"position_ids": position_ids(mask)} if takes_positions else {}
        found = cast(Any, plain)(input_ids=tokens, attention_mask=mask, use_cache=False, **given).logits[mask.bool()]
    size = min(wanted.shape[-1], found.shape[-1])
    difference = (wanted[:, :size] - found[:, :size]).float().abs().max()
    return bool(difference <= _TOLERANCE.get(wanted.dtype, _TOLERANCE_ELSEWHERE) * wanted.float().abs().max())


# --- TransformerBridge ------------------------------------------------------------------------------------------------------


def _unwrapped(bridge: HookedModel) -> nn.Module | None:
    """The bridge's transformers model without the wrappers around its modules; None if the bridge computes with other weights too."""
    found = wrapped_plain_model(bridge)
    # A bridge computes with views of some weights, which may have been replaced.
    modules = modules_below(cast(Any, bridge).original_model)
    return found if found is not None and _storages(modules) <= _storages(modules_below(found)) else None


def wrapped_plain_model(bridge: HookedModel) -> nn.Module | None:
    """The transformers model that a bridge has wrapped, without the wrappers; weights and buffers are the same objects.

    The bridge may compute with other weights beside these: of GPT-NeoX, it copies those of queries, keys and values.

    Returns:
        The model, whose modules are the caller's own; None if weights were processed, or are moved between calls.
    """
    if getattr(bridge, "compatibility_mode", False) or getattr(bridge, "_weights_processed", False):
        return None  # norms are folded into other weights
    original = cast(Any, bridge).original_model
    modules = modules_below(original)
    if any("_hf_hook" in vars(module) for module in modules):
        return None  # accelerate moves weights between calls
    return _Unwrapping(original.config, _own_config(original)).of(original)


def _storages(modules: Iterable[nn.Module]) -> set[int]:
    """Where the weights of some modules lie, without those of the modules inside them."""
    return {_storage(each) for module in modules for each in module._parameters.values() if each is not None}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _own_config(hf_model: Any) -> Any:
    """The config with the attention that transformers itself would choose; a bridge asks for the one that returns its patterns."""
    config = copy.copy(hf_model.config)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    config._attn_implementation = "sdpa" if type(hf_model)._supports_sdpa and not capped else "eager"
    config.output_attentions = False
    return config


class _Unwrapping:
    """Copies modules without their hooks, but not what they hold; a module in several places is copied once."""

    def __init__(self, original: Any, config: Any) -> None:
        self._original, self._config = original, config
        self._copies: dict[int, nn.Module] = {}

    def of(self, module: nn.Module) -> nn.Module:
        """The copy of a module, and of those inside it."""
        while isinstance(wrapped := module._modules.get("_original_component"), nn.Module):
            module = wrapped
        if id(module) in self._copies:
            return self._copies[id(module)]
        made = self._copies[id(module)] = object.__new__(type(module))
        # A wrapper may have replaced the method of the module that it wraps.
        made.__dict__.update({name: value for name, value in module.__dict__.items() if name != "forward"})
        made.__dict__.update({name: OrderedDict() for name in (*_HOOKS, *_HOOK_FLAGS) if name in module.__dict__})
        made.__dict__["training"] = False
        if module.__dict__.get("config") is self._original:
            made.__dict__["config"] = self._config
        made.__dict__["_modules"] = {name: None if child is None else self.of(child) for name, child in module._modules.items()}
        return made


# --- HookedTransformer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Origin:
    """What a `HookedTransformer` was loaded from, and what it was like then."""

    plain: Any
    """The transformers model."""
    weights: Mapping[str, Tensor]
    """Its weights under TransformerLens's names: views of the transformers model's where that has them, else copies."""
    shared: frozenset[str]
    """Names of the weights that are those views."""
    modules: tuple[tuple[str, type], ...]
    """Names and classes of its modules."""
    buffers: tuple[tuple[str, int, int], ...]
    """Names, places and versions of its buffers, such as RoPE's tables."""
    settings: Mapping[str, Any]
    """Its config."""


_origins: weakref.WeakKeyDictionary[Any, _Origin] = weakref.WeakKeyDictionary()


def share_weights(model: HookedModel, plain: nn.Module, converted: Mapping[str, Tensor]) -> None:
    """Let a `HookedTransformer`'s weights be views of those of the transformers model that it was loaded from, where they can.

    That takes no more memory than before, keeps the transformers model usable, and saves TransformerLens copying weights at every call,
    since the views are in memory as its matrix products want them.

    Args:
        model: The model, with the weights loaded.
        plain: The transformers model, on the same device.
        converted: The transformers model's weights under TransformerLens's names and in its shapes, as the model has loaded them.
    """
    module = cast(nn.Module, model)
    storages = set(map(_storage, plain.parameters()))
    shared: dict[str, int] = {}
    weights = {}
    for name, parameter in module.named_parameters():
        view = converted.get(name)
        if view is None or _storage(view) not in storages or (view.shape, view.dtype) != (parameter.shape, parameter.dtype):
            weights[name] = parameter.detach().clone()
            continue
        weights[name] = view.detach()
        if view.data_ptr() in shared.values():  # tied weights, of which the user may change one
            parameter.data = view.detach().clone()
        else:
            parameter.data = view.detach()
            shared[name] = view.data_ptr()
    _origins[model] = _Origin(plain, weights, frozenset(shared), _modules_of(module), _buffers_of(module), _settings_of(model))


def _modules_of(model: nn.Module) -> tuple[tuple[str, type], ...]:
    return tuple((name, type(module)) for name, module in model.named_modules())


def _buffers_of(model: nn.Module) -> tuple[tuple[str, int, int], ...]:
    named = model.named_buffers()
    return tuple((name, each.data_ptr(), 0 if each.is_inference() else each._version) for name, each in named)


def _settings_of(model: HookedModel) -> dict[str, Any]:
    """The config except the model's name and switches that add hook points."""
    return {name: value for name, value in vars(model.cfg).items() if name != "model_name" and not name.startswith("use_attn_")}


def _origin(model: HookedModel) -> nn.Module | None:
    """The transformers model that a `HookedTransformer` was loaded from, if it still computes the same."""
    origin = _origins.get(model)
    module = cast(nn.Module, model)
    if origin is None or _modules_of(module) != origin.modules or _settings_of(model) != origin.settings:
        return None
    if _buffers_of(module) != origin.buffers:
        return None
    weights = dict(module.named_parameters())
    if weights.keys() != origin.weights.keys():
        return None
    for name, parameter in weights.items():
        known = origin.weights[name]
        if name in origin.shared:
            same = parameter.data_ptr() == known.data_ptr() and parameter.stride() == known.stride()
        else:
            same = parameter.dtype == known.dtype and torch.equal(parameter, known.to(parameter.device))
        if not same or parameter.shape != known.shape:
            return None
    return _Unwrapping(origin.plain.config, _own_config(origin.plain)).of(origin.plain)
