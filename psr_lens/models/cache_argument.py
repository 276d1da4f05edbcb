"""The argument by which a transformers model takes its KV cache: transformers 5.24 renamed `past_key_values` to `cache`."""

from __future__ import annotations

import inspect
from typing import Any, Final, cast

import torch

from psr_lens.models.hooked_model import HookedModel, is_bridge

OLD_NAME: Final = "past_key_values"
NEW_NAME: Final = "cache"

_MENDED: Final = "_psr_lens_takes_the_cache_by_its_new_name"


def cache_argument(hf_model: torch.nn.Module) -> str:
    """The name by which the forward method of a transformers model takes its cache, in the installed version."""
    return NEW_NAME if NEW_NAME in inspect.signature(hf_model.forward).parameters else OLD_NAME


def carry_cache(model: HookedModel) -> None:
    """Let a bridge's attention find its cache under the new name too, which TransformerLens up to 4.3 looks for under the old one.

    Without it, transformers 5.24 and later decode as if every token were the first. Calling it again has no effect; a
    `HookedTransformer`, and a bridge whose transformers model uses the old name, are left alone.
    """
    if not is_bridge(model) or cache_argument(cast(Any, model).original_model) == OLD_NAME:
        return
    from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge

    for component in cast(torch.nn.Module, model).modules():
        # A plain `AttentionBridge` hands its arguments to transformers' own attention, which wants the new name.
        computes_itself = isinstance(component, AttentionBridge) and type(component).forward is not AttentionBridge.forward
        if computes_itself and not hasattr(component, _MENDED):
            component.register_forward_pre_hook(_by_the_old_name, with_kwargs=True)
            setattr(component, _MENDED, True)


def _by_the_old_name(
    module: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    if NEW_NAME not in named:
        return None
    return arguments, {OLD_NAME if name == NEW_NAME else name: value for name, value in named.items()}
