"""Massive activations: a few numbers of the residual stream, at a few tokens, that are far larger than everything else.

Sun et al. 2024 (arXiv 2402.17762) call a number massive if its magnitude is above 100 and around 1,000 times the median magnitude of the
hidden state. Both bounds depend on the model: the first on its scale, the second on its width, and in SmolLM2-135M the numbers in question
reach 340 to 860 times the median, where the rest stays below 210. What distorts sums of squares is that one number outweighs many
whole tokens, so that is what is asked here: is a token's largest number at least `RATIO` times the norm of the median token? At 3, one
number counts as much as nine ordinary tokens. A token that is large in all its numbers is not massive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens.activations.log_histogram import BINS, histogram_quantile, log_histogram

RATIO: Final = 3.0
"""Least largest number of a massive token, in norms of the median token; in SmolLM2-135M massive tokens are at 3.9 to 10, others below
2.6; in the organisms all are below 2."""
_DIMENSIONS: Final = 4
"""Most dimensions that are named for a token; massive activations occur in fewer (Sun et al. 2024, section 2)."""
_ALL_KEPT: Final = 256
"""Tokens of a layer that are kept before their median norm is relied on to drop others."""
_MARGIN: Final = 2.0
"""How far the median norm of the tokens so far may be from that of all tokens."""


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


@dataclass(frozen=True, eq=False)
class Peaks:
    """What is needed of some tokens' activations to tell which are massive."""

    norm: Float[Tensor, " token"]
    """Norm of each token."""
    largest: Float[Tensor, "token peak"]
    """Its largest magnitudes, in descending order."""
    dimension: Int[Tensor, "token peak"]
    """Their dimensions."""

    @classmethod
    def of(cls, rows: Float[Tensor, "token width"]) -> Peaks:
        """The peaks of activations, on the CPU."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        largest, dimension = rows.abs().topk(min(_DIMENSIONS, rows.shape[1]), dim=1)
        return cls(torch.linalg.vector_norm(rows, dim=1).cpu(), largest.cpu(), dimension.int().cpu())


@dataclass(frozen=True, eq=False)
class Found:
    """The massive tokens at some layers: one entry for each token and layer at which it is massive in any context."""

    row: Int[Tensor, " entry"]
    """Row of the token, in ascending order."""
    column: Int[Tensor, " entry"]
    """Index of the layer, in ascending order within a row."""
    norm: Float[Tensor, "entry context"]
    """Norm of the token in each context."""
    massive: Bool[Tensor, "entry context"]
    """In which contexts it is massive."""
    dimension: Int[Tensor, "entry context peak"]
    """The dimensions of its massive numbers, largest first, then −1."""
    typical: Float[Tensor, "column context"]
    """Norm of the median token at each layer in each context."""

    def mask(self, tokens: int) -> Bool[Tensor, "token column"]:
        """Whether each of so many tokens is massive at each layer in any context."""
        mask = torch.zeros(tokens, len(self.typical), dtype=torch.bool)
        mask[self.row, self.column] = True
        return mask


class MassiveFinder:
    """Finds massive tokens at several layers in several contexts, batch by batch, in any order.

    A median needs all tokens, and a batch has only some. So norms are counted in histograms, and tokens that may turn out to be massive are
    kept until the end. Memory grows with their number and not with that of all tokens.
    """

    def __init__(self, columns: int, contexts: int, ratio: float = RATIO) -> None:
        """Start without tokens, for so many layers and contexts."""
        self._ratio = ratio
        self._histograms = torch.zeros(columns, contexts, BINS, dtype=torch.long)
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, column: int, rows: Int[Tensor, " token"], contexts: Sequence[Peaks]) -> None:
        """Add a batch at one layer: the rows of its tokens, and their peaks in each context."""
        norm = torch.stack([each.norm for each in contexts], dim=1)
        largest = torch.stack([each.largest for each in contexts], dim=1)
        seen = self._histograms[column]
        for context, values in enumerate(norm.T):
            seen[context] += log_histogram(values)
        if int(seen[0].sum()) <= _ALL_KEPT:
            possible = torch.ones(len(rows), dtype=torch.bool)
        else:
            possible = (largest[..., 0] * _MARGIN >= self._ratio * self._typical(column)).any(dim=1)
        dimension = torch.stack([each.dimension for each in contexts], dim=1)
        columns = torch.full((int(possible.sum()),), column)
        self._kept.append((rows[possible], columns, norm[possible].float(), largest[possible].float(), dimension[possible]))

    def finish(self) -> Found:
        """The massive tokens among all that were added."""
        typical = torch.stack([self._typical(column) for column in range(len(self._histograms))])
        row, column, norm, largest, dimension = (torch.cat(each) for each in zip(*self._kept, strict=True))
        bound = (self._ratio * typical[column])[..., None]
        over = (largest >= bound) & (bound > 0)
        found = over.any(dim=(1, 2)).nonzero().flatten()
        found = found[torch.argsort(row[found] * len(typical) + column[found])]
        over = over[found]
        return Found(row[found], column[found], norm[found], over.any(dim=2), torch.where(over, dimension[found], -1), typical)

    def _typical(self, column: int) -> Float[Tensor, " context"]:
        return torch.tensor([histogram_quantile(each, 0.5) for each in self._histograms[column]])
