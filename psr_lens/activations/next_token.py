"""How far two distributions of the next token are apart."""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

_AT_ONCE: Final = 2**22
"""Most logits that are compared at once."""


def divergence(wanted: Float[Tensor, "token d_vocab"], found: Float[Tensor, "token d_vocab"]) -> Float[Tensor, " token"]:
    """KL(wanted ‖ found) of logits in nats, in double precision, a few tokens at a time."""
    size = max(1, _AT_ONCE // wanted.shape[1])
    return torch.cat([_divergence(*each) for each in zip(wanted.split(size), found.split(size), strict=True)])


def _divergence(wanted: Tensor, found: Tensor) -> Tensor:
    p, q = wanted.double().log_softmax(-1), found.double().log_softmax(-1)
    # A token that is impossible under both (−∞) adds nothing.
    return torch.where(p == -torch.inf, 0, p.exp() * (p - q)).sum(-1)
