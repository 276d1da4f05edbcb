"""The module that steers at one hook point.

It has no branches on data, so that it compiles, and all numbers are in buffers, so that a compiled graph outlives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from psr_lens.replacement.site import Rule, Site

_ORDER: Final[tuple[tuple[Rule, ...], ...]] = (("relu",), ("sigmoid",), ("linear", "constant", "projection"))
"""Rules with the same nonlinearity are computed together: ReLU, logistic function, none."""
_FEW: Final = 8
"""Up to so many directions are added up one by one where a compiler makes one loop of that and of what comes after it. A matrix product it
would call by itself; without a compiler that is faster."""


class Gate(nn.Module):
    """What all replacements add at one hook point, each times its strength at each token (Heyman & Vandeputte 2026, eq. 7 and 8).

    A strength of 0 adds exactly 0.
    """

    probes: Tensor
    bias: Tensor
    directions: Tensor
    strengths: Tensor
    columns: Tensor

    def __init__(
        self, sites: Sequence[tuple[int, Site]], strengths: Float[Tensor, "token replacement"], device: torch.device
    ) -> None:
        """Put the sites next to each other.

        Args:
            sites: Sites of one width, each with its column in `strengths`.
            strengths: The strength of each replacement at each token of a batch; kept, and read at each call.
            device: Where the model is.
        """
        super().__init__()
        groups = [[(column, site) for column, site in sites if site.rule in rules] for rules in _ORDER]
        self.ranks = tuple(sum(site.rank for _, site in group) for group in groups)
        """Number of directions under each nonlinearity."""
        ordered = [(column, site.to(device, torch.float32)) for group in groups for column, site in group]
        self.register_buffer("probes", torch.cat([_probes(site) for _, site in ordered], -2).transpose(-1, -2).contiguous(), False)
        self.register_buffer("bias", torch.cat([site.bias for _, site in ordered], -1).unsqueeze(-2), False)
        self.register_buffer("directions", torch.cat([site.directions for _, site in ordered], -2), False)
        self.register_buffer("strengths", strengths, False)
        columns = [column for column, site in ordered for _ in range(site.rank)]
        self.only = columns[0] if len(set(columns)) == 1 else None
        """The column of all sites, if they share one; else each direction's is in `columns`."""
        self.register_buffer("columns", torch.tensor(columns, device=device), False)

    def forward(self, arriving: Float[Tensor, "token *head width"]) -> Float[Tensor, "token *head width"]:
        """What is added to each token's activation, in single precision."""
        rows = arriving.to(torch.float32)
        if rows.ndim == 3:  # `[head, token, d_head]`
            rows = rows.transpose(0, 1)
        read = rows @ self.probes + self.bias
        relu, sigmoid, plain = read.split(self.ranks, -1)
        parts = [part for part, rank in zip((relu.relu(), sigmoid.sigmoid(), plain), self.ranks, strict=True) if rank]
        coefficients = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        strengths = self.strengths.narrow(0, 0, arriving.shape[0])
        weights = strengths.index_select(1, self.columns) if self.only is None else strengths.narrow(1, self.only, 1)
        added = _weighted_sum(coefficients * weights, self.directions)
        return added.transpose(0, 1) if rows.ndim == 3 else added


def _weighted_sum(
    coefficients: Float[Tensor, "*head token rank"], directions: Float[Tensor, "*head rank width"]
) -> Float[Tensor, "*head token width"]:
    """The directions, each times its coefficient, added up."""
    rank = directions.shape[-2]
    if rank > _FEW or not torch.compiler.is_compiling():
        return coefficients @ directions
    first, *others = (coefficients[..., each, None] * directions[..., None, each, :] for each in range(rank))
    return sum(others, first)


def _probes(site: Site) -> Tensor:
    """What is multiplied with an activation and added to the bias: λ = A·w + b before the nonlinearity."""
    if site.rule == "projection":
        return -site.directions
    return torch.zeros_like(site.weights) if site.rule == "constant" else site.weights
