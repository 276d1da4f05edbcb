"""Prefill and decode steps that carry a model's state: the KV cache, and the recurrent states of models that have such."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from psr_lens.models.cache_argument import cache_argument, carry_cache
from psr_lens.models.forward_pass import contiguous_unembedding, hardly_any_logits, logits_at, position_ids, stopped
from psr_lens.models.hooked_model import HookedModel, device_of, is_bridge

LEAST_COLUMNS: Final = 8
"""Fewest tokens that sequences have to have in common at their beginning for these to be run on their own."""


def can_extend_by_several(model: HookedModel) -> bool:
    """Whether several tokens may follow a prefix in one step, and hooks see these alone.

    Recurrent layers of transformers may start from zero then, and a model without a cache reads everything again.
    """
    if not is_bridge(model):
        return True
    original = cast(Any, model).original_model
    return takes_cache(original) and not any(
        hasattr(layer, "recurrent_states") for layer in DynamicCache(config=original.config).layers
    )


def takes_cache(hf_model: torch.nn.Module) -> bool:
    """Whether a transformers model carries its state from call to call in a cache of transformers' kinds."""
    return _cache_name(hf_model) is not None


def _cache_name(hf_model: torch.nn.Module) -> str | None:
    known = inspect.signature(hf_model.forward).parameters
    return next((name for name in (cache_argument(hf_model), "cache_params") if name in known), None)


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
        """Start an empty cache for `batch` sequences."""
        self._model = model
        self._state: _State | None = None
        if is_bridge(model):
            carry_cache(model)
            self._state = _state_of(cast(Any, model).original_model)
        else:
            self._cache = self._empty(batch)

    def begin(self, tokens: Int[Tensor, "batch position"], mask: Int[Tensor, "batch position"], most: int) -> int:
        """Run the first columns of an empty cache's batch once for all sequences, as far as these begin alike.

        Args:
            tokens: Prompts, padded on the left.
            mask: 1 where a token is real, 0 on padding.
            most: Most columns to run, fewer than there are.

        Returns:
            The number of columns; the next step begins there. 0 where it would save little, or the model's state is more than keys and
            values of all tokens.
        """
        n_layers = int(self._model.cfg.n_layers)
        if self._state is not None:
            return self._state.begin(tokens, mask, most, lambda new, known: self.step(new, known, n_layers))
        columns = alike(tokens, mask, most)
        if columns == 0:
            return 0
        self._cache = self._empty(1)
        self.step(*_longest(tokens, mask, columns), n_layers)
        for entry in self._cache.entries:
            entry.past_keys, entry.past_values = (
                spread(each, mask[:, :columns], 1) for each in (entry.past_keys, entry.past_values)
            )
        self._cache.previous_attention_mask = mask[:, :columns].to(self._cache.previous_attention_mask)
        return columns

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
        if stop_at_layer is not None and stop_at_layer >= self._model.cfg.n_layers:
            with hardly_any_logits(self._model):
                return self.step(new, mask)
        return self._run(new, mask, stop_at_layer)[:, -1].to(new.device)

    def logits(
        self, new: Int[Tensor, "batch new"], mask: Int[Tensor, "batch position"], rows: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_vocab"]:
        """Run the new tokens.

        Args:
            new: As for `step`.
            mask: As for `step`.
            rows: Indices of positions of the flattened new tokens.

        Returns:
            The logits at these positions.
        """
        if self._state is not None:
            rows = self._state.rows(rows, new.shape[1])
        with logits_at(self._model, rows) as taken:
            return taken(self._run(new, mask, None)).to(new.device)

    def _empty(self, batch: int) -> Any:
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        return TransformerLensKeyValueCache.init_cache(self._model.cfg, device_of(self._model), batch)

    def _run(self, new: Tensor, mask: Tensor, stop_at_layer: int | None) -> Tensor:
        width = new.shape[1]
        if self._state is not None:
            new = self._state.tokens(new)
            given = self._state.arguments(mask, width)
        else:
            if mask.shape[1] > width:  # tokens may have been left out since
                self._cache.previous_attention_mask = mask[:, :-width]
            given = {"attention_mask": mask[:, -width:], "past_kv_cache": self._cache}
        with stopped(self._model, stop_at_layer) as where:
            return cast(Tensor, self._model(new, **where, **given))

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
        """Start an empty cache."""
        self._model = hf_model
        self._state = _state_of(hf_model)
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(hf_model.forward).parameters else {}

    def step(self, new: Int[Tensor, "batch new"], mask: Int[Tensor, "batch position"]) -> Float[Tensor, "batch d_vocab"]:
        """Run the new tokens; see `Decoder.step`."""
        given = self._state.arguments(mask, new.shape[1])
        with contiguous_unembedding(self._model):
            found = self._model(input_ids=self._state.tokens(new), **given, **self._last_only)
        return cast(Tensor, found.logits)[:, -1].to(new.device)

    def logits(
        self, new: Int[Tensor, "batch new"], mask: Int[Tensor, "batch position"], rows: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_vocab"]:
        """Run the new tokens; see `Decoder.logits`."""
        rows = self._state.rows(rows, new.shape[1])
        given = self._state.arguments(mask, new.shape[1])
        with logits_at(self._model, rows) as taken:
            return taken(self._model(input_ids=self._state.tokens(new), **given).logits).to(new.device)

    def begin(self, tokens: Int[Tensor, "batch position"], mask: Int[Tensor, "batch position"], most: int) -> int:
        """Run once what all sequences of an empty cache's batch begin with; see `Decoder.begin`."""
        return self._state.begin(tokens, mask, most, self.step)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these sequences of the batch."""
        self._state.select(rows)


def _state_of(hf_model: torch.nn.Module) -> _State:
    return _State(hf_model) if takes_cache(hf_model) else _AllTokens(hf_model)


class _State:
    """What a transformers model carries from call to call, of the kinds that its own config asks for."""

    def __init__(self, hf_model: torch.nn.Module) -> None:
        self._known = inspect.signature(hf_model.forward).parameters
        self._name = str(_cache_name(hf_model))
        # With the config, each layer gets the cache of its kind: full or sliding attention, a recurrent state.
        self._cache = DynamicCache(config=cast(Any, hf_model).config)
        self._only_recurrent = bool(self._cache.layers) and not any(map(_has_keys, self._cache.layers))

    def tokens(self, new: Int[Tensor, "batch new"]) -> Int[Tensor, "batch read"]:
        """The tokens to run, so that new ones are added."""
        return new

    def rows(self, rows: Int[Tensor, " row"], width: int) -> Int[Tensor, " row"]:
        """Indices of positions of the flattened tokens to run, from indices of the new ones, `width` a sequence, before they are run."""
        return rows

    def arguments(self, mask: Int[Tensor, "batch position"], width: int) -> dict[str, Any]:
        """Arguments of a call that adds `width` tokens."""
        # A recurrent layer masks what enters it, and attention the keys of all tokens so far.
        here = mask[:, -width:] if self._only_recurrent else mask
        given = {"attention_mask": here, self._name: self._cache, "use_cache": True}
        if "position_ids" in self._known:
            given["position_ids"] = position_ids(mask)[:, -width:]
        return given

    def begin(self, tokens: Tensor, mask: Tensor, most: int, step: Callable[[Tensor, Tensor], Any]) -> int:
        """Run what all sequences begin with, by `step`, and give each of them the keys and values; see `Decoder.begin`."""
        # Of the last tokens alone, or in a recurrent state, it would not be each sequence's own.
        only_keys = bool(self._cache.layers) and all(type(layer) is DynamicLayer for layer in self._cache.layers)
        columns = alike(tokens, mask, most) if only_keys else 0
        if columns:
            step(*_longest(tokens, mask, columns))
            for layer in cast(Any, self._cache).layers:
                layer.keys, layer.values = (spread(each, mask[:, :columns], -2) for each in (layer.keys, layer.values))
        return columns

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Keep the state of some sequences; each layer has its own on its own device."""
        self._cache.reorder_cache(rows)


class _AllTokens(_State):
    """The tokens themselves, for a model that takes no cache: it reads all of them again at each call."""

    def __init__(self, hf_model: torch.nn.Module) -> None:
        self._known = inspect.signature(hf_model.forward).parameters
        self._tokens: Tensor | None = None

    def tokens(self, new: Int[Tensor, "batch new"]) -> Int[Tensor, "batch read"]:
        """All tokens so far, and the new ones."""
        self._tokens = new if self._tokens is None else torch.cat([self._tokens, new], dim=1)
        return self._tokens

    def rows(self, rows: Int[Tensor, " row"], width: int) -> Int[Tensor, " row"]:
        """The new tokens come last in each sequence."""
        before = 0 if self._tokens is None else self._tokens.shape[1]
        return rows + before * (rows // width + 1)

    def arguments(self, mask: Int[Tensor, "batch position"], width: int) -> dict[str, Any]:
        """Arguments of a call with all tokens."""
        return {"attention_mask": mask} | ({"position_ids": position_ids(mask)} if "position_ids" in self._known else {})

    def begin(self, tokens: Tensor, mask: Tensor, most: int, step: Callable[[Tensor, Tensor], Any]) -> int:
        """Nothing can be run for all sequences."""
        return 0

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Keep the tokens of some sequences."""
        if self._tokens is not None:
            self._tokens = self._tokens[rows]


def alike(tokens: Int[Tensor, "batch position"], mask: Int[Tensor, "batch position"], most: int) -> int:
    """The number of first columns, padding included, in which all sequences of a left-padded batch begin as one of them does.

    Chat templates put the same system message before every question. 0 if there are too few columns to be worth a pass of their own.
    """
    paddings = (mask == 0).sum(1)
    longest = tokens[paddings.argmin()]
    place = torch.arange(tokens.shape[1], device=tokens.device) - paddings[:, None]
    different = ((tokens != longest[place.clamp(min=0)]) & (place >= 0)).any(0).nonzero()
    columns = min(int(different[0]) if len(different) else tokens.shape[1], most)
    return columns if len(tokens) > 1 and columns >= LEAST_COLUMNS and int(paddings.min()) == 0 else 0


def _longest(tokens: Tensor, mask: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """The first columns of the sequence without padding, and their mask, as a batch of one."""
    first = mask[:, :columns].sum(1).argmax()
    return tokens[first, None, :columns], mask[first, None, :columns]


def spread(state: Tensor, mask: Int[Tensor, "batch position"], position: int) -> Tensor:
    """Keys or values of one sequence, `[1, …]`, for each row of a left-padded batch that begins as it does.

    Args:
        state: Its keys or values.
        mask: The batch's mask, as wide as the state; what is at padding is arbitrary.
        position: The dimension of positions.
    """
    places = (torch.arange(mask.shape[1], device=mask.device) - (mask == 0).sum(1)[:, None]).clamp(min=0).to(state.device)
    return torch.stack([state[0].index_select(position if position < 0 else position - 1, row) for row in places])


def _has_keys(layer: Any) -> bool:
    return isinstance(layer, DynamicLayer)
