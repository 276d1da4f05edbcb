"""Prefill and decode steps with a KV cache, in both TransformerLens classes."""

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from psr_lens.models.cache_argument import cache_argument, carry_cache
from psr_lens.models.hooked_model import HookedModel, device_of, is_bridge, is_spread


class Decoder:
    """Prefill and decode steps with a KV cache, correct under left padding in both classes.

    TransformerLens's own `generate` drops the attention mask (`HookedTransformer`) or infers it from token ids.
    """

    def __init__(self, model: HookedModel, batch: int) -> None:
        """Start an empty cache for `batch` sequences."""
        self._model = model
        self._cache: Any
        if is_bridge(model):
            carry_cache(model)
            self._name = cache_argument(cast(Any, model).original_model)
            self._cache = DynamicCache()
        else:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            self._cache = TransformerLensKeyValueCache.init_cache(model.cfg, device_of(model), batch)

    def step(
        self, new: Int[Tensor, "batch new"], mask: Int[Tensor, "batch position"], stop_at_layer: int | None = None
    ) -> Float[Tensor, "batch last"]:
        """Run the new tokens.

        Args:
            new: Token ids to run.
            mask: 1 where a token is real, for all tokens so far, including the new ones.
            stop_at_layer: Skip this layer and all later ones.

        Returns:
            The logits at the last token, or its residual stream if the pass stops at a layer.
        """
        width = new.shape[1]
        if stop_at_layer is not None and stop_at_layer >= self._model.cfg.n_layers:
            stop_at_layer = None
        if is_bridge(self._model):
            positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -width:]
            given = {"attention_mask": mask, "position_ids": positions, self._name: self._cache, "use_cache": True}
        else:
            given = {"attention_mask": mask[:, -width:], "past_kv_cache": self._cache}
        return cast(Tensor, self._model(new, stop_at_layer=stop_at_layer, **given))[:, -1].to(new.device)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these sequences of the batch; a sequence may be repeated."""
        if is_bridge(self._model):
            # Each layer's cache is on that layer's device; indices must be there or on the CPU.
            self._cache.batch_select_indices(rows.cpu() if is_spread(self._model) else rows)
            return
        for entry in self._cache.entries:
            here = rows.to(entry.past_keys.device)
            entry.past_keys, entry.past_values = entry.past_keys[here], entry.past_values[here]
        self._cache.previous_attention_mask = self._cache.previous_attention_mask[rows]
