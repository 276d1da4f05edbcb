"""What psr_lens needs of a model, and what a model is asked for that its class keeps in a place of its own."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast, runtime_checkable

import torch
import transformer_lens
from transformers import GenerationConfig

from psr_lens.errors import ModelError


@runtime_checkable
class HookedModel(Protocol):
    """What psr_lens needs of a model; `HookedTransformer` and `TransformerBridge` both have it."""

    cfg: Any
    tokenizer: Any
    training: bool

    @property
    def hook_dict(self) -> dict[str, Any]:
        """Every hook point by name."""

    def hooks(self, fwd_hooks: list[Any] = ..., **kwargs: Any) -> AbstractContextManager[Any]:
        """Add hooks for the length of a `with` block."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The weights."""

    def train(self, mode: bool = True) -> Any:
        """Set training mode."""


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has `HookedTransformer` (removed in 4.0)."""
    try:
        return hasattr(transformer_lens, "HookedTransformer")
    except ImportError:
        return False


def is_bridge(model: HookedModel) -> bool:
    """Whether `model` is a `TransformerBridge`; by class name, so that neither class need be importable."""
    return any(cls.__name__ == "TransformerBridge" for cls in type(model).__mro__)


def device_of(model: HookedModel) -> torch.device:
    """The device that tokens must be on: that of the embedding, where the model is spread over several."""
    if is_bridge(model) and is_spread(model):  # which lists its parameters in an order of its own
        return torch.device(model.cfg.device)
    return next(iter(model.parameters())).device


def is_spread(model: HookedModel) -> bool:
    """Whether its layers are on several devices."""
    return int(getattr(model.cfg, "n_devices", None) or 1) > 1


def context_length(model: HookedModel) -> int:
    """The largest number of tokens that the model was made for."""
    return int(model.cfg.n_ctx)


def all_modules(model: HookedModel) -> set[torch.nn.Module]:
    """Every module that takes part in a forward pass."""
    modules = set(cast(torch.nn.Module, model).modules())
    if is_bridge(model):  # some modules of the model that it wraps are not its own, GPT-2's first dropout for one
        modules |= set(cast(Any, model).original_model.modules())
    return modules


def hook_tables(model: HookedModel) -> list[Mapping[int, Any]]:
    """Where hooks are kept that may see or change an activation, whoever has added them; the tables stay those of the model."""
    # A bridge's own hooks before its norms keep the residual stream that enters a block; that one is never edited.
    points = {id(each): each for each in model.hook_dict.values()}.values()
    return [*(module._forward_hooks for module in all_modules(model)), *(point._forward_pre_hooks for point in points)]


def called_module(model: HookedModel) -> torch.nn.Module:
    """The module that every call of the model goes through, with the token ids as its first argument or by name."""
    # A bridge's own methods go past its `__call__`, but not past that of the model that it wraps.
    return cast(torch.nn.Module, cast(Any, model).original_model if is_bridge(model) else model)


_tokenizers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def tokenizer_of(model: HookedModel) -> Any:
    """Our own copy of the model's tokenizer: TransformerLens changes settings on its own while it works.

    Raises:
        ModelError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ModelError("model: it has no tokenizer. Set `model.tokenizer` to the one it was trained with.")
    source = model.tokenizer
    ours, origin = _tokenizers.get(model, (None, None))
    # The user may put in another tokenizer, or a chat template, at any time.
    if origin is not source or getattr(ours, "chat_template", None) != getattr(source, "chat_template", None):
        ours = copy.deepcopy(source)
        if getattr(ours, "bos_token", None) and getattr(ours, "init_kwargs", {}).get("bos_token", ours.bos_token) is None:
            ours.bos_token = None  # TransformerLens gives its end token to a tokenizer without one
        _tokenizers[model] = (ours, source)
    return ours


def end_tokens(model: HookedModel) -> frozenset[int]:
    """The tokens that end a response according to the model's own generation settings, of which a chat model has several; maybe none."""
    if is_bridge(model):
        found = getattr(cast(Any, model).original_model, "generation_config", None)
    else:  # HookedTransformer keeps none of them: they lie where its tokenizer was loaded from
        try:
            found = GenerationConfig.from_pretrained(str(getattr(model.tokenizer, "name_or_path", "")), local_files_only=True)
        except (OSError, ValueError):
            found = None
    ends = getattr(found, "eos_token_id", None)
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)
