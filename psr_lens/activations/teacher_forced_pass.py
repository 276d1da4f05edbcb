"""One teacher-forced pass over one batch of triplets: activations at hook points, and the logits of the response tokens.

`paired_passes` runs many batches; callers that need several passes over the same batch (`compare`, `faithfulness`) start here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.activations.batches import ContextBatch, Prefix, context_batch
from psr_lens.activations.finite import check_finite, check_logits, finite_logits
from psr_lens.models import (
    Decoder,
    HookedModel,
    TransformersDecoder,
    alike,
    can_extend_by_several,
    device_of,
    forward,
    frozen,
    hooked,
    is_altered,
    logits_at,
    spans_known,
)
from psr_lens.models.hook_points import is_pattern, layer_of
from psr_lens.prompts import Context, Span, Triplet
from psr_lens.replacement import SPANS, Acting, InWeights, in_force

_LOGITS: Final = 2**29
"""Most logits in memory at once: 2 GiB in single precision."""


LEAST_ALIKE: Final = 0.1
"""What all sequences of a batch begin with is run once if that saves at least this share of the tokens."""


def logits_budget(model: HookedModel, token_budget: int, readings: int) -> int:
    """Most tokens in a batch, padding included, if the logits of `readings` passes over it are held at once."""
    return max(1, min(token_budget, _LOGITS // (int(model.cfg.d_vocab) * readings)))


@dataclass(frozen=True)
class PassSteering:
    """Steering for a teacher-forced pass: what steers, how strongly, and where to read what it acts on."""

    steering: Acting
    """A replacement or a plan, which acts on its own span, or an adapter."""
    alpha: float = 1.0
    """Strength α."""
    arriving: Sequence[str] = ()
    """Hook names to read before the steering acts there."""


@dataclass(frozen=True, eq=False)
class BatchReading:
    """Activations and logits of one teacher-forced pass over a batch; rows are the span's tokens, triplet by triplet."""

    rows: Mapping[str, Float[Tensor, "token ..."]]
    """Hook name to the activations that the model continues with, after any steering there; on the device of the tokens."""
    arriving: Mapping[str, Float[Tensor, "token ..."]]
    """Hook name to the activations that arrive, before any steering there."""
    logits: Float[Tensor, "response_token d_vocab"] | None
    """Logits that predict the response tokens, from the last prompt token on; None if they were not requested."""


def read_batch(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    context: Context,
    span: Span,
    *,
    steered: PassSteering | None = None,
    logits: bool = False,
) -> BatchReading:
    """Read some triplets in one context in a single forward pass.

    Args:
        model: The model.
        triplets: As many as fit in one batch.
        names: Hook names to read, after any steering there.
        context: Which prompt the responses follow.
        span: Which tokens to keep of the activations.
        steered: Steering in force during the pass; None for the model as it is.
        logits: Whether to keep the logits too.

    Raises:
        ModelError: activations or logits are not finite; names the first hook point that has such activations.
    """
    batch = context_batch(triplets, context, span, device_of(model))
    held: dict[str, Tensor] = {}
    arrived: dict[str, Tensor] = {}
    arriving = () if steered is None else steered.arriving
    starts = span_starts(triplets, context)
    with torch.no_grad(), frozen(model):
        begun = _common_beginning(model, batch, [*names, *arriving], starts, steered)
        run, known = (_Whole(model, batch), spans_known(model, starts)) if begun is None else (begun, nullcontext())
        before = hooked(model, [(name, keep(arrived, name, run.batch)) for name in arriving])
        acting = nullcontext() if steered is None else in_force(model, steered.steering, steered.alpha, start=starts)
        after = hooked(model, [(name, keep(held, name, run.batch)) for name in names])
        # Hooks at one point run in the order in which they were added.
        with known, before, acting, after:
            found = None
            if logits:
                found = run.logits(predicting(triplets, context, batch.tokens.shape[1]))
            else:
                run.activations(layers_needed([*names, *arriving]))
    check_finite(arrived)
    check_finite(held)
    if found is not None and not finite_logits(found):
        everywhere = [f"blocks.{layer}.hook_resid_post" for layer in range(int(model.cfg.n_layers))]
        read_batch(model, triplets, everywhere, context, span, steered=steered)  # names the layer at which it began
        check_logits(found)
    return BatchReading(held, arrived, found)


@dataclass(frozen=True, eq=False)
class _Whole:
    """Runs a batch in one pass."""

    model: HookedModel
    """The model."""
    batch: ContextBatch
    """What the pass runs."""

    def logits(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_vocab"]:
        """Run the batch; the logits at some positions of the flattened sequences."""
        with logits_at(self.model, rows) as taken:
            return taken(forward(self.model, self.batch.tokens, self.batch.mask))

    def activations(self, stop_at_layer: int | None) -> None:
        """Run the batch for what hooks see, up to a layer."""
        forward(self.model, self.batch.tokens, self.batch.mask, stop_at_layer)


@dataclass(frozen=True, eq=False)
class _Begun:
    """Runs a batch behind the columns in which all of its sequences are alike, which were run once."""

    decoder: Decoder
    """Has run them."""
    whole: ContextBatch
    """The batch with all columns."""
    columns: int
    """How many were run."""

    @cached_property
    def batch(self) -> ContextBatch:
        """What is left to run."""
        tokens, mask, span = (each[:, self.columns :] for each in (self.whole.tokens, self.whole.mask, self.whole.span))
        return ContextBatch(tokens, mask, span, self.whole.start - self.columns)

    def logits(self, rows: Int[Tensor, " row"]) -> Float[Tensor, "row d_vocab"]:
        """Run the rest; the logits at some positions of the flattened sequences, all columns among them."""
        width = self.whole.tokens.shape[1]
        here = rows - self.columns * (rows // width + 1)
        return self.decoder.logits(self.batch.tokens, self.whole.mask, here)

    def activations(self, stop_at_layer: int | None) -> None:
        """Run the rest for what hooks see, up to a layer."""
        self.decoder.step(self.batch.tokens, self.whole.mask, stop_at_layer)


def _common_beginning(
    model: HookedModel,
    batch: ContextBatch,
    names: Sequence[str],
    starts: Mapping[Span, Int[Tensor, " row"]],
    steered: PassSteering | None,
) -> _Begun | None:
    """Run once what all sequences begin with, such as the system message of a chat template; None if that saves little.

    Neither steering nor any span begins there. Hooks of others may act there, and adapters do; a pattern has a column for every token.
    """
    if (steered is not None and isinstance(steered.steering, InWeights)) or any(map(is_pattern, names)):
        return None
    most = min(int(batch.start.min()), *(int(each.min()) for each in starts.values()))
    columns = alike(batch.tokens[:, :most], batch.mask[:, :most], most) if most > 0 else 0
    if columns * (len(batch.tokens) - 1) < LEAST_ALIKE * int(batch.mask.sum()):
        return None
    if not can_extend_by_several(model) or is_altered(model):
        return None
    decoder = Decoder(model, len(batch.tokens))
    columns = decoder.begin(batch.tokens[:, :most], batch.mask[:, :most], most)
    return _Begun(decoder, batch, columns) if columns else None


AnyDecoder = TypeVar("AnyDecoder", Decoder, TransformersDecoder)


def after_prompts(decoder: AnyDecoder, prompts: Prefix, stop_at_layer: int | None = None) -> AnyDecoder:
    """The decoder, which has read each prompt once, and goes on with the sequences that continue them.

    Args:
        decoder: A new decoder, for as many sequences as there are prompts.
        prompts: What the sequences of a `suffix_batch` continue.
        stop_at_layer: The first layer that is not run; None to run all, as plain transformers always does.
    """
    begun = decoder.begin(prompts.tokens, prompts.mask, prompts.tokens.shape[1] - 1)
    left = prompts.tokens[:, begun:]
    if isinstance(decoder, Decoder):
        decoder.step(left, prompts.mask, stop_at_layer)
    else:
        decoder.step(left, prompts.mask)
    decoder.select(prompts.owner)
    return decoder


def predicting(triplets: Sequence[Triplet], context: Context, width: int) -> Int[Tensor, " response_token"]:
    """Where the response tokens are predicted: the token before each, in the flattened batch of sequences right-padded to `width`."""
    first = [row * width + len(triplet.pair.ids(context)) - 1 for row, triplet in enumerate(triplets)]
    return torch.cat([torch.arange(at, at + len(triplet.response_ids)) for at, triplet in zip(first, triplets, strict=True)])


def span_starts(triplets: Sequence[Triplet], context: Context) -> dict[Span, Tensor]:
    """Position of the first token of each span, in right-padded sequences."""
    lengths = [len(triplet.pair.ids(context)) for triplet in triplets]
    return {
        span: torch.tensor([length - triplet.pair.span_length(span) for length, triplet in zip(lengths, triplets, strict=True)])
        for span in SPANS
    }


def layers_needed(names: Sequence[str]) -> int | None:
    """The first layer that no hook point needs; None if all layers are needed."""
    layers = [layer_of(name) for name in names]
    inside = [layer for layer in layers if layer is not None]
    before = all(name in ("hook_embed", "hook_pos_embed") for name, layer in zip(names, layers, strict=True) if layer is None)
    return max(inside) + 1 if inside and before else None


def gather(activation: Tensor, batch: ContextBatch, rows: Int[Tensor, " token"], name: str) -> Tensor:
    """An activation's rows at some tokens, copied once, on the device of `rows`; `[token, head, key]` for an attention pattern."""
    width, home = batch.tokens.shape[1], rows.device
    rows = rows.to(activation.device)  # the device of the layer
    if is_pattern(name):
        return activation[rows // width, :, rows % width].to(home)
    if len(activation) < len(batch.tokens):  # shared by the batch, as GPT-2's position embeddings may be
        return activation[0, rows % width].to(home)
    if activation.shape[1] > width:  # HookedTransformer's rotated keys include the prefix
        activation = activation[:, -width:]
    return activation.flatten(0, 1).index_select(0, rows).to(home)


def keep(held: dict[str, Tensor], name: str, batch: ContextBatch) -> Any:
    """A hook that stores a point's rows on the span in `held`."""

    def hook(activation: Tensor, hook: Any) -> None:
        if name not in held:  # HookedTransformer fires LayerNorm points once each for queries, keys and values
            held[name] = gather(activation.detach(), batch, batch.rows, name)

    return hook
