"""The argument by which a transformers model takes its KV cache: transformers 5.24 renamed `past_key_values` to `cache`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final, cast

import torch

from psr_lens.models.hooked_model import HookedModel, is_bridge

OLD_NAME: Final = "past_key_values"
OLD_NAME_OF_STATES: Final = "cache_params"
NEW_NAME: Final = "cache"

_READ_STATES: Final = ("GatedDeltaNetBridge",)
"""Components of a bridge that look for recurrent states by themselves."""
_MENDED: Final = "_psr_lens_takes_the_cache_by_its_new_name"


def cache_argument(hf_model: torch.nn.Module) -> str:
    """The name by which the forward method of a transformers model takes its cache, in the installed version."""
    return NEW_NAME if NEW_NAME in inspect.signature(hf_model.forward).parameters else OLD_NAME


def carry_cache(model: HookedModel) -> None:
    """Let a bridge and its components find the cache under either name: TransformerLens up to 4.3 knows the old ones only.

    Without it, transformers 5.24 and later decode as if every token were the first. Calling it again has no effect; a
    `HookedTransformer`, and a bridge whose transformers model uses the old name, are left alone.
    """
    if not is_bridge(model) or cache_argument(original := cast(Any, model).original_model) == OLD_NAME:
        return
    if NEW_NAME in inspect.signature(original.forward).parameters and not hasattr(original, _MENDED):
        # TransformerLens's own `generate` gives Mamba its states as `past_key_values`, which that takes for nothing.
        original.register_forward_pre_hook(_Renaming((OLD_NAME, OLD_NAME_OF_STATES), NEW_NAME), with_kwargs=True)
        setattr(original, _MENDED, True)
    for component in cast(torch.nn.Module, model).modules():
        name = _name_inside(component)
        if name is not None and not hasattr(component, _MENDED):
            component.register_forward_pre_hook(_Renaming((NEW_NAME,), name), with_kwargs=True)
            setattr(component, _MENDED, True)


def _name_inside(component: torch.nn.Module) -> str | None:
    """The name under which a component of a bridge looks for its cache, if it looks for it by itself."""
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    if type(component).__name__ in _READ_STATES:
        return OLD_NAME_OF_STATES
    # A plain `AttentionBridge` hands its arguments to transformers' own attention, which wants the new name.
    if isinstance(component, AttentionBridge) and type(component).forward is not AttentionBridge.forward:
        return OLD_NAME
    return None


@dataclass(frozen=True)
class _Renaming:
    """A hook that hands a module its cache under the name that it looks for."""

    given: tuple[str, ...]
    """Names under which it may come."""
    wanted: str
    """The name that is looked for."""

    def __call__(
        self, module: Any, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        here = [name for name in self.given if named.get(name) is not None]
        if not here or named.get(self.wanted) is not None:
            return None
        others = {name: value for name, value in named.items() if name not in (self.wanted, here[0])}
        return arguments, {**others, self.wanted: named[here[0]]}
