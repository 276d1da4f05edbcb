"""Prefill and decode steps that carry a model's state: the KV cache, and the recurrent states of models that have such."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from psr_lens.errors import ModelError
from psr_lens.models.cache_argument import cache_argument, carry_cache
from psr_lens.models.forward_pass import hardly_any_logits, position_ids, stopped
from psr_lens.models.hooked_model import HookedModel, device_of, is_bridge


def can_extend_by_several(model: HookedModel) -> bool:
    """Whether several tokens may follow a prefix in one step: transformers' recurrent layers may start from zero then."""
    if not is_bridge(model):
        return True
    return not any(
        hasattr(layer, "recurrent_states") for layer in DynamicCache(config=cast(Any, model).original_model.config).layers
    )


def can_leave_out(model: HookedModel) -> bool:
    """Whether the tokens of a cache may be left out by a mask of 0, as if they had never been read.

    Attention to the last few tokens counts those that are left out too, and so do distances that are not taken from position ids.
    """
    if not is_bridge(model):
        return not model.cfg.use_local_attn and model.cfg.positional_embedding_type in ("standard", "rotary")
    original = cast(Any, model).original_model
    sliding = any(getattr(layer, "is_sliding", False) for layer in DynamicCache(config=original.config).layers)
    return can_extend_by_several(model) and not sliding and "position_ids" in inspect.signature(original.forward).parameters


class Decoder:
    """Prefill and decode steps of a TransformerLens model, correct under left padding in both classes.

    TransformerLens's own `generate` drops the attention mask (`HookedTransformer`) or infers it from token ids.
    """

    def __init__(self, model: HookedModel, batch: int) -> None:
        """Start an empty cache for `batch` sequences.

        Raises:
            ModelError: a bridge whose transformers model takes no cache.
        """
        self._model = model
        self._state: _State | None = None
        if is_bridge(model):
            carry_cache(model)
            self._state = _State(cast(Any, model).original_model)
        else:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            self._cache = TransformerLensKeyValueCache.init_cache(model.cfg, device_of(model), batch)

    def step(
        self, new: Int[Tensor, "batch new"], mask: Int[Tensor, "batch position"], stop_at_layer: int | None = None
    ) -> Float[Tensor, "batch last"]:
        """Run the new tokens.

        Args:
            new: Token ids to run.
            mask: 1 where a token is real, for all tokens so far, including the new ones. A token that was real before may be 0 now; see
                `can_leave_out`.
            stop_at_layer: Skip this layer and all later ones; the number of layers skips none, but makes the logits of no use.

        Returns:
            The logits at the last token, or its residual stream if the pass stops at a layer.
        """
        width = new.shape[1]
        if stop_at_layer is not None and stop_at_layer >= self._model.cfg.n_layers:
            with hardly_any_logits(self._model):
                return self.step(new, mask)
        if self._state is not None:
            given = self._state.arguments(mask, width)
        else:
            if mask.shape[1] > width:  # tokens may have been left out since
                self._cache.previous_attention_mask = mask[:, :-width]
            given = {"attention_mask": mask[:, -width:], "past_kv_cache": self._cache}
        with stopped(self._model, stop_at_layer) as where:
            return cast(Tensor, self._model(new, **where, **given))[:, -1].to(new.device)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these sequences of the batch; a sequence may be repeated."""
        if self._state is not None:
            self._state.select(rows)
            return
        for entry in self._cache.entries:
            here = rows.to(entry.past_keys.device)
            entry.past_keys, entry.past_values = entry.past_keys[here], entry.past_values[here]
        self._cache.previous_attention_mask = self._cache.previous_attention_mask[rows]


class TransformersDecoder:
    """The same steps of a plain transformers model."""

    def __init__(self, hf_model: torch.nn.Module) -> None:
        """Start an empty cache.

        Raises:
            ModelError: the model takes no cache.
        """
        self._model = hf_model
        self._state = _State(hf_model)
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(hf_model.forward).parameters else {}

    def step(self, new: Int[Tensor, "batch new"], mask: Int[Tensor, "batch position"]) -> Float[Tensor, "batch d_vocab"]:
        """Run the new tokens; see `Decoder.step`."""
        given = self._state.arguments(mask, new.shape[1])
        return cast(Tensor, self._model(input_ids=new, **given, **self._last_only).logits)[:, -1].to(new.device)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these sequences of the batch."""
        self._state.select(rows)


class _State:
    """What a transformers model carries from call to call, of the kinds that its own config asks for."""

    def __init__(self, hf_model: torch.nn.Module) -> None:
        self._known = inspect.signature(hf_model.forward).parameters
        self._name = next((name for name in (cache_argument(hf_model), "cache_params") if name in self._known), None)
        if self._name is None:
            raise ModelError(
                f"model: {type(hf_model).__name__} takes no cache of transformers' kinds, so its state cannot be carried from token to "
                "token, and no responses can be sampled. `load_model(…, verify=False)` loads it for reading alone."
            )
        # With the config, each layer gets the cache of its kind: full or sliding attention, a recurrent state.
        self._cache = DynamicCache(config=cast(Any, hf_model).config)
        self._only_recurrent = bool(self._cache.layers) and not any(map(_has_keys, self._cache.layers))

    def arguments(self, mask: Int[Tensor, "batch position"], width: int) -> dict[str, Any]:
        """Arguments of a call that adds `width` tokens."""
        # A recurrent layer masks what enters it, and attention the keys of all tokens so far.
        here = mask[:, -width:] if self._only_recurrent else mask
        given = {"attention_mask": here, self._name: self._cache, "use_cache": True}
        if "position_ids" in self._known:
            given["position_ids"] = position_ids(mask)[:, -width:]
        return cast(dict[str, Any], given)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Keep the state of some sequences; each layer has its own on its own device."""
        self._cache.reorder_cache(rows)


def _has_keys(layer: Any) -> bool:
    return isinstance(layer, DynamicLayer)
