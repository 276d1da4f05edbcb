"""Massive activations: a few numbers of the residual stream, at a few tokens, that are far larger than everything else.

Sun et al. 2024 (arXiv 2402.17762) call a number massive if its magnitude is above 100 and around 1,000 times the median magnitude of the
hidden state. Both bounds depend on the model: the first on its scale, the second on its width, and in SmolLM2-135M the numbers in question
reach 340 to 860 times the median, where the rest stays below 210. What distorts sums of squares is that one number outweighs many
whole tokens, so that is what is asked here: is a token's largest number at least `RATIO` times the norm of the median token? At 3, one
number counts as much as nine ordinary tokens. A token that is large in all its numbers is not massive.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

RATIO: Final = 3.0
"""Least largest number of a massive token, in norms of the median token; in SmolLM2-135M massive tokens are at 3.9 to 10, others below
2.6; in the organisms all are below 2."""


def is_massive(rows: Float[Tensor, "token ..."], ratio: float = RATIO, typical: float | None = None) -> Bool[Tensor, " token"]:
    """Which tokens have a massive activation, from the activations of one layer in one context.

    Args:
        rows: Activations, not differences, with one row per token.
        ratio: Least magnitude of a massive number, in units of `typical`.
        typical: Norm of the median token; None to take it from `rows`, which must then be enough tokens for a median.
    """
    flat = rows.flatten(1).to(torch.promote_types(rows.dtype, torch.float32))  # squares of large numbers overflow half precision
    if not len(flat):
        return torch.zeros(0, dtype=torch.bool, device=rows.device)
    middle = torch.linalg.vector_norm(flat, dim=1).median() if typical is None else typical
    largest: Tensor = flat.abs().amax(dim=1)
    # Where most tokens are exactly 0, nothing says what is ordinary.
    return (largest >= ratio * middle) & (torch.as_tensor(middle) > 0)
