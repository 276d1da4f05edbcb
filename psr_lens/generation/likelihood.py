"""Log-likelihoods of responses under a model, token by token, from teacher-forced passes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches, sharing_saves, suffix_batch
from psr_lens.activations.finite import finite_logits
from psr_lens.activations.paired_passes import TOKEN_BUDGET
from psr_lens.activations.teacher_forced_pass import PassSteering, after_prompts, logits_budget, read_batch
from psr_lens.models import (
    Decoder,
    HookedModel,
    TransformersDecoder,
    can_extend_by_several,
    device_of,
    frozen,
    is_altered,
    plain_transformers,
)
from psr_lens.prompts import Context, Triplet, check_triplets
from psr_lens.replacement import Acting, check_acting

_COPIES: Final = 3
"""Copies of the logits held at once: from the model, gathered on the span, and in single precision."""


def log_likelihoods(
    model: HookedModel,
    triplets: Sequence[Triplet],
    replacement: Acting | None = None,
    *,
    context: Context = "base",
    alpha: float = 1.0,
    token_budget: int = TOKEN_BUDGET,
) -> list[Float[Tensor, " token"]]:
    """Log-probability of each response token given the prompt and the tokens before it, in nats.

    The same response to the same prompt is read once, and so is, without a replacement, a prompt that several responses share.

    Args:
        model: The model.
        triplets: Prompt pairs with responses.
        replacement: What is in force, a replacement, a plan or an adapter; None for the model as it is.
        context: Which prompt the responses follow: `"base"` or `"prompted"`.
        alpha: Strength of the replacement.
        token_budget: Maximum number of tokens in a batch, including padding; less for a large vocabulary, so that the logits fit in memory.

    Returns:
        One tensor per triplet, on the CPU.

    Raises:
        InputError: no triplets, an empty response, or one that does not fit the model's context.
    """
    check_triplets(model, triplets)
    check_acting(replacement)
    texts = [_text(each, context) for each in triplets]
    distinct = list(dict(zip(texts, triplets, strict=True)).values())
    # Steering, and hooks of others, may act on the prompt, and differently in each response.
    alone = replacement is None and not is_altered(model) and can_extend_by_several(model)
    shared = alone and sharing_saves(distinct, "R", (context,))
    steered = None if replacement is None else PassSteering(replacement, alpha)
    found: dict[Hashable, Tensor] = {}
    batches = list(length_batches(distinct, logits_budget(model, token_budget, _COPIES), by_prompt=shared))
    for indices in progress_bar(batches, desc="likelihood", unit="batch"):
        chosen = [distinct[index] for index in indices]
        logits = _after_shared_prompts(model, chosen, context) if shared else None
        if logits is None:
            logits = read_batch(model, chosen, [], context, "R", steered=steered, logits=True).logits
        if logits is not None:
            ids = torch.tensor([token for each in chosen for token in each.response_ids], device=logits.device)
            surprise = torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")
            values = (-surprise).cpu().split([len(each.response_ids) for each in chosen])
            found |= zip((_text(each, context) for each in chosen), values, strict=True)
    return [found[text].clone() for text in texts]


def _text(triplet: Triplet, context: Context) -> Hashable:
    """Everything that the likelihood of a response depends on in one context."""
    return triplet.pair.ids(context), triplet.pair.question_length, triplet.response_ids


def _after_shared_prompts(
    model: HookedModel, triplets: Sequence[Triplet], context: Context
) -> Float[Tensor, "token d_vocab"] | None:
    """The logits of the response tokens, with each distinct prompt computed once; None if any is NaN or infinite."""
    batch = suffix_batch(triplets, context, "R", device_of(model))
    if batch.prefix is None:
        return None
    with torch.no_grad(), frozen(model):
        # The span begins at the last token of the prompt; each of its tokens but the last predicts a response token.
        ends = batch.mask.sum(1) - 1
        predicting = torch.arange(batch.tokens.shape[1], device=ends.device) < ends[:, None]
        asked = batch.tokens, batch.whole_mask, predicting.flatten().nonzero().flatten()
        if (plain := plain_transformers(model)) is not None:
            logits = after_prompts(TransformersDecoder(plain), batch.prefix).logits(*asked)
        else:
            own = Decoder(model, len(batch.prefix.tokens))
            logits = after_prompts(own, batch.prefix, int(model.cfg.n_layers)).logits(*asked)
    return logits if finite_logits(logits) else None
