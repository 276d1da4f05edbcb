"""What a replacement does at one hook point: its directions, and the rule that gives each token its coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Rule = Literal["relu", "sigmoid", "linear", "constant", "projection"]
"""`relu`: λ = max(0, A·w + b), read from each token's activation (eq. 8); `sigmoid`: λ = 1 / (1 + exp(−A·w − b)), a gate; `linear`:
λ = A·w + b, of either sign;
`constant`: λ = b, the same on every token; `projection`: λ = b − A·z, which moves the projection on a direction of length 1 to b
(Stolfo et al. 2025, "Improving Instruction-Following in Language Models through Activation Steering", arXiv 2410.12877)."""


@dataclass(frozen=True, eq=False, repr=False)
class Site:
    """What a replacement does at one hook point (Heyman & Vandeputte 2026, eq. 7 and 8).

    Example:
        >>> pirate.sites["blocks.2.hook_resid_post"]
        Site(relu, rank 4, width 128)
    """

    directions: Float[Tensor, "*head rank width"]
    """The directions `z` that are added, `[rank, d_model]`; at `attn.hook_z` each head has its own, `[head, rank, d_head]`."""
    weights: Float[Tensor, "*head rank width"]
    """The probes `w`, shaped like the directions; all zero under rules without probes."""
    bias: Float[Tensor, "*head rank"]
    """The biases `b`, `[rank]` or `[head, rank]`: the coefficient itself under `constant`, the target under `projection`."""
    rule: Rule
    """How each token's coefficients are computed."""

    def __repr__(self) -> str:
        """Rule, rank and width, e.g. `Site(relu, rank 1, width 128)`; at `attn.hook_z`, `width 4 × 32`."""
        return f"Site({self.rule}, rank {self.rank}, width {' × '.join(map(str, self.width))})"

    @property
    def width(self) -> tuple[int, ...]:
        """Shape of one token's activation: `(d_model,)` or `(n_heads, d_head)`."""
        return (*self.directions.shape[:-2], self.directions.shape[-1])

    @property
    def rank(self) -> int:
        """Number of directions, or of directions per head."""
        return self.directions.shape[-2]

    @property
    def is_finite(self) -> bool:
        """Whether no number of it is NaN or infinite."""
        return all(bool(part.isfinite().all()) for part in (self.directions, self.weights, self.bias))

    def coefficients(self, activation: Float[Tensor, "*token width"]) -> Float[Tensor, "*token rank"]:
        """λ of each token (eq. 8), in units of the directions; of each token and head at `attn.hook_z`.

        Example:
            >>> pirate.sites["blocks.2.hook_resid_post"].coefficients(torch.zeros(7, 128)).shape  # 7 tokens, rank 4
            torch.Size([7, 4])
        """
        if self.rule == "constant":
            return self.bias.expand(*activation.shape[:-1], self.bias.shape[-1])
        read = per_head(activation, (self.directions if self.rule == "projection" else self.weights).transpose(-1, -2))
        if self.rule == "projection":
            return self.bias - read
        read = read + self.bias
        if self.rule == "linear":
            return read
        return torch.relu(read) if self.rule == "relu" else torch.sigmoid(read)

    def intervention(self, activation: Float[Tensor, "*token width"]) -> Float[Tensor, "*token width"]:
        """λ(A)·z, what is added to each token's activation at `alpha=1` (eq. 7).

        Example:
            >>> pirate.sites["blocks.2.hook_resid_post"].intervention(torch.zeros(7, 128)).shape
            torch.Size([7, 128])
        """
        return per_head(self.coefficients(activation), self.directions)

    def to(self, device: torch.device, dtype: torch.dtype) -> Site:
        """The same site with its tensors on another device and of another dtype.

        Example:
            >>> pirate.sites["blocks.2.hook_resid_post"].to(torch.device("cpu"), torch.bfloat16).bias.dtype
            torch.bfloat16
        """
        return Site(self.directions.to(device, dtype), self.weights.to(device, dtype), self.bias.to(device, dtype), self.rule)

    def padded(self, rank: int) -> Site:
        """The same site with as many directions as `rank`; those that are added, with their probes, are 0.

        Example:
            >>> caa.sites["blocks.2.hook_resid_post"].padded(4).rank
            4
        """
        missing = rank - self.rank
        wide = [torch.nn.functional.pad(each, (0, 0, 0, missing)) for each in (self.directions, self.weights)]
        return Site(wide[0], wide[1], torch.nn.functional.pad(self.bias, (0, missing)), self.rule)

    @staticmethod
    def stacked(sites: Sequence[Site]) -> tuple[Tensor, Tensor, Tensor]:
        """Directions, weights and biases of several sites, stacked; all are padded to the largest rank.

        Example:
            >>> directions, weights, bias = psr.replacement.Site.stacked(list(pirate.sites.values()))
            >>> directions.shape  # site, rank, d_model
            torch.Size([6, 4, 128])
        """
        rank = max(site.rank for site in sites)
        padded = [site.padded(rank) for site in sites]
        directions, weights, bias = (
            torch.stack([getattr(site, part) for site in padded]) for part in ("directions", "weights", "bias")
        )
        return directions, weights, bias


def per_head(rows: Float[Tensor, "*token left"], matrix: Float[Tensor, "*head left right"]) -> Float[Tensor, "*token right"]:
    """Rows times a matrix, or each head's rows times the matrix of that head."""
    if matrix.ndim == 2:
        return rows @ matrix
    return torch.einsum("...hl,hlr->...hr", rows, matrix)  # one product a head; `@` would copy the matrices for each token
