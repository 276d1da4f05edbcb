"""How much of the prompt's effect is along one direction, layer by layer, with massive tokens and without them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens.activations.statistics import SecondMoments


class Rank1Shares:
    """Sums up Δ batch by batch, and gives the share of its energy in its first singular direction after each layer.

    One massive token can outweigh all others, and its share is then near 1 whatever these do. Which tokens are massive is known only when
    all were seen, so the Δ of those that may be is kept apart until then.
    """

    def __init__(self, layers: int, width: int) -> None:
        """Start without tokens, for so many layers."""
        self._moments = [SecondMoments(width) for _ in range(layers)]
        self._apart: list[list[Tensor]] = [[] for _ in range(layers)]
        self._rows = torch.zeros(0, dtype=torch.long)

    def add(self, column: int, delta: Float[Tensor, "token width"], possible: Bool[Tensor, " token"]) -> None:
        """Add a batch's Δ after one layer.

        Args:
            column: The layer's index.
            delta: The differences.
            possible: Which tokens may turn out to be massive, the same at each layer.
        """
        apart = possible.to(delta.device)
        self._moments[column].add(delta[~apart])
        self._apart[column].append(delta[apart].cpu())

    def end(self, rows: Int[Tensor, " token"]) -> None:
        """End a batch that was added after each layer; its tokens that may turn out to be massive have these rows."""
        self._rows = torch.cat([self._rows, rows])

    def _count(self, settled: Bool[Tensor, " token"]) -> None:
        """Count some of the tokens that were kept apart."""
        for moments, apart in zip(self._moments, self._apart, strict=True):
            every = torch.cat(apart)
            moments.add(every[settled])
            apart[:] = [every[~settled]]
        self._rows = self._rows[~settled]

    def finish(self, massive: Bool[Tensor, " token"]) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
        """The shares among all tokens, and among those that are not massive at any layer; NaN where nothing changes.

        Args:
            massive: Whether each row is massive.
        """
        self._count(~massive[self._rows])
        without = [_share(each) for each in self._moments]
        self._count(torch.ones_like(self._rows, dtype=torch.bool))
        everything = [_share(each) for each in self._moments]
        return torch.tensor(everything, dtype=torch.float32), torch.tensor(without, dtype=torch.float32)


def _share(moments: SecondMoments) -> float:
    values, _ = moments.leading(1)
    return float(values[0]) / moments.energy if moments.energy else float("nan")
