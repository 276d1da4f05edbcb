"""How likely a model finds responses, token by token, from teacher-forced passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.models import HookedModel, device_of, forward, frozen
from psr_lens.prompts import Context, Triplet, check_triplets, context_batch, length_batches

TOKEN_BUDGET: Final = 4_096
"""Tokens of a batch, padding included, unless the caller says otherwise: the logits of a large vocabulary fill a memory fast."""


def log_likelihoods(
    model: HookedModel, triplets: Sequence[Triplet], context: Context = "base", *, token_budget: int = TOKEN_BUDGET
) -> list[Float[Tensor, "token"]]:
    """Log p of each response token given the prompt and the tokens before it, in nats.

    Args:
        model: The model as it is, without steering.
        triplets: Prompt pairs with responses.
        context: Which prompt the responses are read after.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        One tensor a triplet, on the CPU.

    Raises:
        InputError: no triplets, an empty response, or one that does not fit the model's context.
    """
    check_triplets(model, triplets)
    found: dict[int, Tensor] = {}
    with torch.no_grad(), frozen(model):
        for indices in length_batches(triplets, token_budget):
            batch = context_batch([triplets[index] for index in indices], context, "R", device_of(model))
            logits = forward(model, batch.tokens, batch.mask)
            places = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
            # On the span R, each token but the last predicts the next one.
            predicted = (batch.span & (places > batch.start[:, None]))[:, 1:]
            surprise = torch.nn.functional.cross_entropy(
                logits[:, :-1][predicted].float(), batch.tokens[:, 1:][predicted], reduction="none"
            )
            counts = [len(triplets[index].response_ids) for index in indices]
            found |= zip(indices, (-surprise).cpu().split(counts), strict=True)
    return [found[index] for index in range(len(triplets))]
