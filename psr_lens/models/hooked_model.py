"""What psr_lens needs of a model, and properties that the two TransformerLens classes store differently."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast, runtime_checkable

import torch
from transformers import GenerationConfig

from psr_lens._utils.arguments import CHECKS, described
from psr_lens.errors import InputError, ModelError


@runtime_checkable
class WithTokenizer(Protocol):
    """As much of a model as prompts need."""

    @property
    def cfg(self) -> Any:
        """The model's configuration."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; None if it has none."""


@runtime_checkable
class HookedModel(WithTokenizer, Protocol):
    """What psr_lens needs of a model; `HookedTransformer` and `TransformerBridge` both provide it."""

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


def check_model(model: object, argument: str = "model") -> None:
    """Refuse what is not a loaded model: a name, a model of another library, an argument in the wrong position.

    Raises:
        InputError: it has no hook points.
    """
    # Not `isinstance`: on a bridge that builds the dictionary of all hook points.
    if not hasattr(type(model), "hooks"):
        raise _no_model(model, argument)
    _check_with_tokenizer(model, argument)


def _check_with_tokenizer(model: object, argument: str) -> None:
    if not (hasattr(model, "cfg") and hasattr(model, "tokenizer")):
        raise _no_model(model, argument)


def _no_model(given: object, argument: str) -> InputError:
    return InputError(
        argument,
        described(given),
        "a HookedTransformer or a TransformerBridge",
        f"`psr_lens.load_model({given!r})` loads it."
        if isinstance(given, str)
        else "`psr_lens.load_model` returns one; it is the first argument.",
    )


CHECKS[WithTokenizer] = _check_with_tokenizer
CHECKS[HookedModel] = check_model


def has_hooked_transformer() -> bool:
    """Whether the installed TransformerLens still has `HookedTransformer` (removed in 4.0)."""
    try:
        import transformer_lens

        return hasattr(transformer_lens, "HookedTransformer")
    except ImportError:
        return False


def is_bridge(model: HookedModel) -> bool:
    """Whether `model` is a `TransformerBridge`; tested by class name, so that neither class need be importable."""
    return any(cls.__name__ == "TransformerBridge" for cls in type(model).__mro__)


def device_of(model: HookedModel) -> torch.device:
    """The device that tokens must be on; if the model is spread over several devices, that of the embedding."""
    if is_bridge(model) and is_spread(model):  # its first parameter need not be the embedding
        return torch.device(model.cfg.device)
    return next(iter(model.parameters())).device


def dtype_of(model: HookedModel) -> torch.dtype:
    """The type of the model's weights, and so of its activations."""
    return next(iter(model.parameters())).dtype


def is_spread(model: HookedModel) -> bool:
    """Whether the model's layers are on several devices."""
    return int(getattr(model.cfg, "n_devices", None) or 1) > 1


def context_length(model: WithTokenizer) -> int:
    """The model's context length in tokens."""
    return int(model.cfg.n_ctx)


def check_ids(model: HookedModel, ids: Iterable[int], argument: str) -> None:
    """Refuse token ids that the model has no embedding for.

    Raises:
        InputError: an id is negative, or not below the size of the model's vocabulary.
    """
    size = int(model.cfg.d_vocab)
    if (unknown := next((each for each in ids if not 0 <= each < size), None)) is not None:
        raise InputError(
            argument,
            f"the token id {unknown}",
            f"ids from 0 to {size - 1}, the model's vocabulary",
            "Make prompts and responses with the tokenizer of this model.",
        )


def all_modules(model: HookedModel) -> set[torch.nn.Module]:
    """Every module that takes part in a forward pass, hook points among them."""
    if not is_bridge(model):
        return modules_below(cast(torch.nn.Module, model))
    # Some modules of the wrapped model are not among its own, e.g. GPT-2's first dropout.
    return modules_below(cast(torch.nn.Module, model), cast(Any, model).original_model)


def modules_below(*roots: torch.nn.Module) -> set[torch.nn.Module]:
    """Modules and all those inside them; torch's own `modules()` also makes up their names, which takes several times as long."""
    found: set[torch.nn.Module] = set()
    waiting: list[torch.nn.Module | None] = list(roots)
    while waiting:
        module = waiting.pop()
        if module is not None and module not in found:
            found.add(module)
            waiting.extend(module._modules.values())
    return found


def named_modules_of(model: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """Every module that takes part in a forward pass with the first name that leads to it; that of the model itself is empty."""
    waiting = [("", model)]
    if isinstance(model, torch.nn.Module) and is_bridge(cast(Any, model)):
        waiting.insert(0, ("original_model", cast(Any, model).original_model))
    seen: set[int] = set()
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        inner = [(f"{name}.{key}" if name else key, each) for key, each in module._modules.items() if each is not None]
        waiting.extend(reversed(inner))


def hook_tables(model: HookedModel) -> list[Mapping[int, Any]]:
    """The tables of all hooks that may see or change an activation, whoever added them; they are the model's own, not copies."""
    # A bridge's own pre-hooks on its norms record the residual stream that enters a block; they edit nothing.
    points = {id(each): each for each in model.hook_dict.values()}.values()
    return [*(module._forward_hooks for module in all_modules(model)), *(point._forward_pre_hooks for point in points)]


def called_module(model: HookedModel) -> torch.nn.Module:
    """The module that every call of the model goes through; it gets the token ids as its first argument or by name."""
    # A bridge's own methods bypass its `__call__`, but not that of the wrapped model.
    return cast(torch.nn.Module, cast(Any, model).original_model if is_bridge(model) else model)


_tokenizers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def tokenizer_of(model: WithTokenizer) -> Any:
    """A copy of the model's tokenizer for psr_lens alone: TransformerLens changes the settings of its own while it runs.

    Raises:
        ModelError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ModelError("model: it has no tokenizer. Set `model.tokenizer` to the one it was trained with.")
    source = model.tokenizer
    ours, origin = _tokenizers.get(model, (None, None))
    # The user may set another tokenizer, or a chat template, at any time.
    if origin is not source or getattr(ours, "chat_template", None) != getattr(source, "chat_template", None):
        ours = copy.deepcopy(source)
        if getattr(ours, "bos_token", None) and getattr(ours, "init_kwargs", {}).get("bos_token", ours.bos_token) is None:
            ours.bos_token = None  # TransformerLens sets it to the end token if a tokenizer has none
        _tokenizers[model] = (ours, source)
    return ours


def end_tokens(model: HookedModel) -> frozenset[int]:
    """Ids of the tokens that end a response, from the model's generation settings: none, one, or several for a chat model."""
    if is_bridge(model):
        found = getattr(cast(Any, model).original_model, "generation_config", None)
    elif hasattr(model, "generation_config"):  # `load_model` puts them there
        found = model.generation_config
    else:  # HookedTransformer does not keep them; they are where its tokenizer was loaded from
        try:
            found = GenerationConfig.from_pretrained(str(getattr(model.tokenizer, "name_or_path", "")), local_files_only=True)
        except (OSError, ValueError):
            found = None
    ends = getattr(found, "eos_token_id", None)
    return frozenset(() if ends is None else [ends] if isinstance(ends, int) else ends)
