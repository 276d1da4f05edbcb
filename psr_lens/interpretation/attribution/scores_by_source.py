"""Attention scores of one batch, head by head, split by what the queries of several contexts are made of.

All queries are asked in one pass over the prompted sequences: one copy of the batch for each context, in which the residual stream that
enters a head's layer is replaced on the span by that context's, and the keys by those of the prompted run. So a query is rotated at the
position that its token has under the prompt, and sees the keys that the prompt's queries see. One further copy has an empty residual
stream there, whose queries are those of biases alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.attention_patterns import align_keys
from psr_lens.activations.batches import ContextBatch, context_batch
from psr_lens.errors import ModelError
from psr_lens.interpretation.attribution.frozen_scores import capped, difference_weights, held_gradient, held_stream_gradient
from psr_lens.models import HookedModel, device_of, dtype_of, forward, frozen, hooked
from psr_lens.prompts import Triplet

_ROUNDING: Final = 16
"""Rounding errors of products, in units of machine precision."""


@dataclass(frozen=True, eq=False)
class AskedHead:
    """What the queries of one head score, all contexts of a batch, and how this depends on what the queries are made of."""

    score: Float[Tensor, "context token"]
    """Mean score with the instruction's keys minus mean score with all other visible ones; NaN where it sees none of one kind."""
    attention: Float[Tensor, "context token"]
    """Attention to the instruction."""
    gradient: Float[Tensor, "context token d_model"]
    """What a vector in the residual stream adds to the score."""
    bias: Float[Tensor, "context token"]
    """What biases add to the score."""


def ask(
    model: HookedModel,
    triplets: Sequence[Triplet],
    streams: Mapping[int, Float[Tensor, "context token d_model"]],
    heads: Mapping[int, Sequence[int]],
) -> dict[tuple[int, int], AskedHead]:
    """Ask the keys of the prompted run with the queries of several contexts.

    Args:
        model: The model.
        triplets: As many as fit in one batch with a copy for each context.
        streams: By layer, the residual stream before it on the span R in every context.
        heads: Heads by layer.

    Raises:
        ModelError: the scores do not depend on the residual stream in a supported way.
    """
    asking = _Asking(model, context_batch(triplets, "prompted", "R", device_of(model)), triplets, streams, heads)
    makers = {
        "hook_resid_pre": asking.replace_stream,
        "attn.hook_q": asking.keep_queries,
        "attn.hook_k": asking.share_keys,
        "attn.hook_attn_scores": asking.read_scores,
        "attn.hook_pattern": asking.read_patterns,
    }
    hooks = [(f"blocks.{layer}.{kind}", make(layer)) for layer in heads for kind, make in makers.items()]
    if missing := [name for name, _ in hooks if name not in model.hook_dict]:
        raise ModelError(f"model: got one without the hook point {missing[0]!r}, which is needed to split its attention scores.")
    copies = asking.contexts + 1
    with torch.enable_grad(), frozen(model), hooked(model, hooks):
        forward(model, asking.batch.tokens.repeat(copies, 1), asking.batch.mask.repeat(copies, 1), max(heads) + 1)
    return asking.found


class _Asking:
    """The hooks of one pass and what they read; in each layer they are called in the order of the methods."""

    def __init__(
        self,
        model: HookedModel,
        batch: ContextBatch,
        triplets: Sequence[Triplet],
        streams: Mapping[int, Float[Tensor, "context token d_model"]],
        heads: Mapping[int, Sequence[int]],
    ) -> None:
        """Nothing was read so far."""
        self.batch, self.contexts = batch, len(next(iter(streams.values())))
        self.found: dict[tuple[int, int], AskedHead] = {}
        self._cfg, self._streams, self._heads = model.cfg, streams, heads
        self._rounding = _ROUNDING * torch.finfo(dtype_of(model)).eps
        # Copies of the batch lie one after the other; the last has the empty stream.
        places = batch.tokens.numel() * torch.arange(self.contexts + 1, device=batch.rows.device)[:, None] + batch.rows
        self._rows, self._empty = places[:-1].flatten(), places[-1]
        marked = torch.zeros(batch.tokens.shape, dtype=torch.bool)
        for row, triplet in enumerate(triplets):
            marked[row, list(align_keys(triplet).instruction)] = True
        owner = batch.rows.cpu() // batch.tokens.shape[1]
        self._instruction = marked[owner].repeat(self.contexts, 1)
        self._stream = self._queries = torch.empty(0)

    def replace_stream(self, layer: int) -> Any:
        """The stream of each context on the span, and an empty one."""

        def hook(activation: Tensor, hook: Any) -> Tensor:
            streams = self._streams[layer].to(activation)
            copies = activation.detach()[: len(self.batch.tokens)].flatten(0, 1).repeat(self.contexts + 1, 1, 1)
            copies[:, self.batch.rows.to(copies.device)] = torch.cat([streams, torch.zeros_like(streams[:1])])
            self._stream = copies.reshape_as(activation).requires_grad_()
            return self._stream

        return hook

    def keep_queries(self, layer: int) -> Any:
        """Queries as they come from the weights, before they are rotated."""

        def hook(activation: Tensor, hook: Any) -> Tensor:
            heads, width = int(self._cfg.n_heads), int(self._cfg.d_head)
            if activation[0, 0].numel() != heads * width:
                raise ModelError(
                    f"model: got a `hook_q` of shape {tuple(activation.shape)} in layer {layer}, expected one query per token and head."
                )
            self._queries = activation
            return activation  # a bridge shows hooks a view, and goes on with it only if it is returned

        return hook

    def share_keys(self, layer: int) -> Any:
        """The keys of the prompted run for all contexts."""

        def hook(activation: Tensor, hook: Any) -> Tensor:
            own = activation.detach()[: len(self.batch.tokens)]
            return own.repeat(self.contexts + 1, *[1] * (own.ndim - 1))

        return hook

    def read_scores(self, layer: int) -> Any:
        """Scores and their gradients."""

        def hook(activation: Tensor, hook: Any) -> Tensor:
            for head in self._heads[layer]:
                self.found[layer, head] = self._split(activation[:, head].flatten(0, 1)[self._rows.to(activation.device)], head)
            return activation.detach()

        return hook

    def read_patterns(self, layer: int) -> Any:
        """Attention to the instruction."""

        def hook(activation: Tensor, hook: Any) -> None:
            for head in self._heads[layer]:
                pattern = activation.detach()[:, head].flatten(0, 1)[self._rows.to(activation.device)]
                attention = (pattern * self._instruction.to(pattern.device)).float().sum(-1)
                self.found[layer, head] = replace(self.found[layer, head], attention=self._by_context(attention))

        return hook

    def _split(self, scores: Float[Tensor, "row key"], head: int) -> AskedHead:
        visible = scores.detach() > torch.finfo(scores.dtype).min / 2
        weights, known = difference_weights(visible, self._instruction.to(scores.device))
        plain = torch.where(visible, scores.detach().float(), 0)
        score = (plain * weights).sum(-1)
        pull = weights * capped(plain, float(getattr(self._cfg, "attn_scores_soft_cap", 0) or 0))
        queries = self._queries.detach().reshape(-1, int(self._cfg.n_heads), int(self._cfg.d_head))
        rows = self._rows.to(queries.device)
        steep = _gradient(scores, self._queries, pull).reshape_as(queries)[rows].float()
        own = held_gradient(steep, queries[rows].float(), score, head, self._rounding)
        bias = (own * queries[self._empty.to(queries.device), head].float().repeat(self.contexts, 1)).sum(-1)
        pull = torch.zeros_like(queries)
        pull[rows, head] = own.to(pull.dtype)
        steep = _gradient(self._queries, self._stream, pull.reshape_as(self._queries)).flatten(0, 1)[rows].float()
        stream = self._stream.detach().flatten(0, 1)[rows].float()
        held = held_stream_gradient(steep, stream, score - bias, float(self._cfg.eps), self._rounding)
        score, bias = (torch.where(known, each, torch.nan) for each in (score, bias))
        return AskedHead(self._by_context(score), self._by_context(score), self._by_context(held), self._by_context(bias))

    def _by_context(self, values: Float[Tensor, "row ..."]) -> Float[Tensor, "context token ..."]:
        return values.reshape(self.contexts, -1, *values.shape[1:]).to(self.batch.rows.device)


def _gradient(output: Tensor, of: Tensor, pull: Tensor) -> Tensor:
    """The gradient of ⟨output, pull⟩.

    Raises:
        ModelError: the model does not compute the one from the other.
    """
    found: Tensor | None = torch.autograd.grad(output, of, pull.to(output), retain_graph=True, allow_unused=True)[0]
    if found is None:
        raise ModelError(
            "model: its attention scores do not depend on its `hook_q` and `hook_resid_pre`. `score_attribution` needs both."
        )
    return found
