"""Log-likelihoods of responses under a model, token by token, from teacher-forced passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches
from psr_lens.activations.paired_passes import TOKEN_BUDGET
from psr_lens.activations.teacher_forced_pass import PassSteering, logits_budget, read_batch
from psr_lens.models import HookedModel
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
    found: dict[int, Tensor] = {}
    batches = list(length_batches(triplets, logits_budget(model, token_budget, _COPIES)))
    steered = None if replacement is None else PassSteering(replacement, alpha)
    for indices in progress_bar(batches, desc="likelihood", unit="batch"):
        chosen = [triplets[index] for index in indices]
        logits = read_batch(model, chosen, [], context, "R", steered=steered, logits=True).logits
        if logits is not None:
            ids = torch.tensor([token for each in chosen for token in each.response_ids], device=logits.device)
            surprise = torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")
            found |= zip(indices, (-surprise).cpu().split([len(each.response_ids) for each in chosen]), strict=True)
    return [found[index] for index in range(len(triplets))]
