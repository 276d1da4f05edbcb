"""The direction of the mean difference at each hook point, on which a comparison projects every token's Δ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.paired_passes import PairedReading
from psr_lens.evaluation.side_by_side import Batch, SideBySide
from psr_lens.models import dtype_of, frozen
from psr_lens.prompts import Triplet


def mean_directions(
    reading: SideBySide, triplets: Sequence[Triplet], first: Batch, token_budget: int
) -> dict[str, Float[Tensor, " d_model"]]:
    """The unit vector along the mean of Δ_acc over all tokens, by hook point; zeros where the mean is exactly zero.

    A token can be projected on the mean only when all tokens have been read. Unless the first batch holds them all, this takes a pass of
    its own.

    Args:
        reading: What is read; the model is not changed.
        triplets: Prompt pairs with responses.
        first: The first batch.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        Hook name to unit vector, in float32 on the CPU.
    """
    names, width = reading.residuals, int(reading.model.cfg.d_model)
    sums = {name: torch.zeros(width, dtype=torch.double) for name in names}

    def add(name: str, rows: Float[Tensor, "token d_model"]) -> None:
        sums[name] += rows.float().sum(dim=0).cpu()

    if len(first.indices) == len(triplets):
        for name in names:
            add(name, first.prompted.rows[name].float() - first.base.rows[name].float())
    else:
        dtype = dtype_of(reading.model)
        again = PairedReading(
            reading.model, triplets, dict.fromkeys(names, (width,)), dtype, reading.span, token_budget=token_budget
        )
        with torch.no_grad(), frozen(reading.model):
            for indices in again.batches(range(len(triplets))):
                again.read(indices, add)
    return {name: torch.nn.functional.normalize(total, dim=0).float() for name, total in sums.items()}


def lengths_of(
    delta: Float[Tensor, "token d_model"], direction: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """‖Δ‖, and the signed length of Δ along a unit vector."""
    return delta.norm(dim=1), delta @ direction.to(delta.device)
