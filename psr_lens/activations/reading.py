"""One teacher-forced pass over one batch of triplets: what is read at hook points, and what the model predicts.

`passes` goes through many batches; what looks at several readings of one batch at a time (`compare`, `faithfulness`) starts here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.activations.batches import ContextBatch, context_batch
from psr_lens.models import HookedModel, device_of, forward, frozen, hooked
from psr_lens.models.hook_points import is_pattern, layer_of
from psr_lens.prompts import Context, Span, Triplet
from psr_lens.replacement import SPANS, Steering

_LOGITS: Final = 2**29
"""Most logits in memory at once: 2 GiB in single precision."""


def logits_budget(model: HookedModel, token_budget: int, readings: int) -> int:
    """Most tokens in a batch, padding included, if the logits of so many readings of it are held at once."""
    return max(1, min(token_budget, _LOGITS // (int(model.cfg.d_vocab) * readings)))


@dataclass(frozen=True)
class BatchReading:
    """What one teacher-forced pass over a batch was seen to do; rows are the span's tokens, triplet after triplet."""

    rows: Mapping[str, Float[Tensor, "token ..."]]
    """Hook name to the activations that the model went on with, on the device of its tokens."""
    arriving: Mapping[str, Float[Tensor, "token ..."]]
    """Hook name to the activations as they came, before a replacement acted there."""
    logits: Float[Tensor, "response_token d_vocab"] | None
    """At the positions that predict a response token, the last prompt token first; None if they were not wanted."""


def read_batch(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    context: Context,
    span: Span,
    *,
    steering: Steering | None = None,
    alpha: float = 1.0,
    arriving: Sequence[str] = (),
    logits: bool = False,
) -> BatchReading:
    """Read some triplets in one context in a single forward pass; arguments as for `collect`.

    Args:
        model: The model.
        triplets: As many as fit in one batch.
        names: Hook points to read as the model goes on with them.
        context: Which prompt the responses are read after.
        span: Which tokens to keep of the activations.
        steering: A replacement or a plan to steer with over its own span, if any.
        alpha: Its strength.
        arriving: Hook points to read as they come.
        logits: Whether to read the logits too.
    """
    batch = context_batch(triplets, context, span, device_of(model))
    held: dict[str, Tensor] = {}
    came: dict[str, Tensor] = {}
    hooks = [] if steering is None else steering.hooks(model, alpha, start=span_starts(triplets, context))
    before = hooked(model, [(name, keep(came, name, batch)) for name in arriving])
    steered = hooked(model, hooks)
    after = hooked(model, [(name, keep(held, name, batch)) for name in names])
    # Hooks of one point run in the order in which they were added.
    with torch.no_grad(), frozen(model), before, steered, after:
        depth = None if logits else layers_needed([*names, *arriving])
        out = forward(model, batch.tokens, batch.mask, depth)
        return BatchReading(held, came, _predicting(out, triplets, context) if logits else None)


def _predicting(logits: Float[Tensor, "batch position d_vocab"], triplets: Sequence[Triplet], context: Context) -> Tensor:
    """The logits that predict response tokens: each is foretold by the token before it."""
    first = [len(triplet.pair.ids(context)) - 1 for triplet in triplets]
    return torch.cat([row[at : at + len(triplet.response_ids)] for row, at, triplet in zip(logits, first, triplets, strict=True)])


def span_starts(triplets: Sequence[Triplet], context: Context) -> dict[Span, Tensor]:
    """Where each span begins in right-padded sequences."""
    lengths = [len(triplet.pair.ids(context)) for triplet in triplets]
    return {
        span: torch.tensor([length - triplet.pair.span_length(span) for length, triplet in zip(lengths, triplets, strict=True)])
        for span in SPANS
    }


def layers_needed(names: Sequence[str]) -> int | None:
    """The first layer that no hook point needs; None where all are needed."""
    layers = [layer_of(name) for name in names]
    inside = [layer for layer in layers if layer is not None]
    before = all(name in ("hook_embed", "hook_pos_embed") for name, layer in zip(names, layers, strict=True) if layer is None)
    return max(inside) + 1 if inside and before else None


def gather(activation: Tensor, batch: ContextBatch, rows: Int[Tensor, " token"], name: str) -> Tensor:
    """Some tokens' rows, copied once, on the device of the tokens; `[token, head, key]` of an attention pattern."""
    width, home = batch.tokens.shape[1], rows.device
    rows = rows.to(activation.device)  # that of the layer
    if is_pattern(name):
        return activation[rows // width, :, rows % width].to(home)
    if len(activation) < len(batch.tokens):  # shared by the batch, as GPT-2's position embeddings may be
        return activation[0, rows % width].to(home)
    if activation.shape[1] > width:  # HookedTransformer's rotated keys hold the prefix too
        activation = activation[:, -width:]
    return activation.flatten(0, 1).index_select(0, rows).to(home)


def keep(held: dict[str, Tensor], name: str, batch: ContextBatch) -> Any:
    """A hook that puts the span's rows of a point into `held`."""

    def hook(activation: Tensor, hook: Any) -> None:
        if name not in held:  # HookedTransformer fires the points of a LayerNorm once each for queries, keys and values
            held[name] = gather(activation.detach(), batch, batch.rows, name)

    return hook
