"""Massive activations: a few numbers of the residual stream, at a few tokens, that are far larger than everything else.

Sun et al. 2024 (arXiv 2402.17762) call a number massive if its magnitude is above 100 and around 1,000 times the median magnitude of the
hidden state. Both bounds depend on the model: the first on its scale, the second on its width, and in SmolLM2-135M those of response
tokens were only 285 to 810 times the median, where the rest stayed below 210. What distorts sums of squares is that one number outweighs
many whole tokens, so that is what is asked here: is a token's largest number at least `RATIO` times the norm of the median token? At 3,
one number counts as much as nine ordinary tokens. A token that is large in all its numbers is not massive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens.activations.log_histogram import BINS, histogram_quantile, log_histogram

RATIO: Final = 3.0
"""Least largest number of a massive token, in norms of the median token. In SmolLM2-135M massive tokens are at 3 to 10, a few lie below,
and nearly all are under 0.8; in the organisms all are below 2."""
_DIMENSIONS: Final = 4
"""Most dimensions that are named for a token in one context."""
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
class _Peaks:
    """What is kept of a batch's activations at one layer in one context, on the CPU."""

    norm: Float[Tensor, " token"]
    """Norm of each token."""
    possible: Int[Tensor, " some"]
    """The tokens of the batch that may turn out to be massive."""
    largest: Float[Tensor, "some peak"]
    """Their largest magnitudes, in descending order."""
    dimension: Int[Tensor, "some peak"]
    """The dimensions of these."""


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

    def mask(self, tokens: int) -> Bool[Tensor, " token"]:
        """Whether each of so many tokens is massive at any layer in any context."""
        mask = torch.zeros(tokens, dtype=torch.bool)
        mask[self.row] = True
        return mask


class MassiveFinder:
    """Finds massive tokens at several layers in several contexts, batch by batch, in any order.

    A median needs all tokens, and a batch has only some. So norms are counted in histograms, and tokens that may turn out to be massive are
    kept until the end. Memory grows with their number and not with that of all tokens.
    """

    def __init__(self, columns: int, contexts: int, ratio: float = RATIO) -> None:
        """Start without tokens, for so many layers (columns) and contexts."""
        self._ratio = ratio
        self._histograms = torch.zeros(columns, contexts, BINS, dtype=torch.long)
        self._seen: dict[tuple[int, int], _Peaks] = {}
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []

    def look(self, column: int, context: int, activations: Float[Tensor, "token width"]) -> None:
        """Look at a batch's activations at one layer in one context."""
        activations = activations.to(torch.promote_types(activations.dtype, torch.float32))
        norm, largest = torch.linalg.vector_norm(activations, dim=1), activations.abs().amax(dim=1)
        self._histograms[column, context] += log_histogram(norm)
        if int(self._histograms[column, context].sum()) <= _ALL_KEPT:
            possible = torch.arange(len(norm), device=norm.device)
        else:
            possible = (largest * _MARGIN >= self._ratio * self._typical(column, context)).nonzero().flatten()
        top, dimension = activations[possible].abs().topk(min(_DIMENSIONS, activations.shape[1]), dim=1)
        self._seen[column, context] = _Peaks(norm.cpu().float(), possible.cpu(), top.cpu().float(), dimension.cpu())

    def add(self, rows: Int[Tensor, " token"]) -> None:
        """End a batch that was looked at at all layers in all contexts; its tokens have these rows."""
        columns, contexts = self._histograms.shape[:2]
        for column in range(columns):
            seen = [self._seen.pop((column, context)) for context in range(contexts)]
            some = torch.cat([each.possible for each in seen]).unique()
            norm = torch.stack([each.norm[some] for each in seen], dim=1)
            largest = norm.new_zeros(len(some), contexts, seen[0].largest.shape[1])
            dimension = torch.full_like(largest, -1, dtype=torch.long)
            for context, each in enumerate(seen):
                at = torch.searchsorted(some, each.possible)
                largest[at, context], dimension[at, context] = each.largest, each.dimension
            self._kept.append((rows[some], torch.full_like(some, column), norm, largest, dimension))

    def possible(self, rows: Int[Tensor, " token"]) -> Bool[Tensor, " token"]:
        """Whether each of some rows that were added may turn out to be massive; `finish` finds no others."""
        return torch.isin(rows, torch.cat([row for row, *_ in self._kept]))

    def finish(self) -> Found:
        """The massive tokens among all that were added."""
        columns, contexts = self._histograms.shape[:2]
        typical = torch.tensor([[self._typical(column, context) for context in range(contexts)] for column in range(columns)])
        row, column, norm, largest, dimension = (torch.cat(each) for each in zip(*self._kept, strict=True))
        bound = (self._ratio * typical[column])[..., None]
        over = (largest >= bound) & (bound > 0)
        found = over.any(dim=(1, 2)).nonzero().flatten()
        found = found[torch.argsort(row[found] * len(typical) + column[found])]
        over = over[found]
        return Found(row[found], column[found], norm[found], over.any(dim=2), torch.where(over, dimension[found], -1), typical)

    def _typical(self, column: int, context: int) -> float:
        return histogram_quantile(self._histograms[column, context], 0.5)
