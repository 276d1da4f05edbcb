"""How far a method is from the prompt after each layer: over all tokens, without massive ones, and at the median token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens.results.bootstrap import NO_INTERVAL
from psr_lens.results.result import Result

METRICS: Final = ("relative RMSE", "relative RMSE without massive tokens", "median relative error")
"""Names of the three distances in tables of results."""


@dataclass(frozen=True, eq=False, repr=False)
class Distance:
    """Three distances from the prompt after each layer; 0 is the prompt's own effect, 1 is no steering, NaN is not known.

    Relative RMSE is a ratio of sums of squares, so that one token with a massive activation may outweigh all others, for better or worse.
    No few tokens can decide the other two.
    """

    relative_rmse: Float[Tensor, " layer"]
    """‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖ over all tokens."""
    without_massive: Float[Tensor, " layer"]
    """The same without the tokens that are massive after any of the layers, in any unsteered context: the same tokens for all layers and
    methods, since a token is large and may flip before and after the layers at which it counts as massive, too."""
    median: Float[Tensor, " layer"]
    """The median over tokens of ‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖ of each; tokens at which Δ_acc is 0 are left out."""

    def __repr__(self) -> str:
        """The last layer's, in one line."""
        return "Distance(after the last layer: {:.3g}; without massive tokens {:.3g}; median token {:.3g})".format(*self.last)

    @property
    def last(self) -> tuple[float, float, float]:
        """The three after the last layer: of all tokens, without massive ones, and of the median token."""
        return float(self.relative_rmse[-1]), float(self.without_massive[-1]), float(self.median[-1])

    def rows(self, layers: Sequence[int], method: str, n: int, trait: str, alpha: float | None) -> list[Result]:
        """The distances as rows of a table of results, by layer; without intervals, since they are not by response."""
        return [
            Result(method, metric, value, n, NO_INTERVAL, trait, "", alpha, layer)
            for metric, values in zip(METRICS, (self.relative_rmse, self.without_massive, self.median), strict=True)
            for layer, value in zip(layers, values.tolist(), strict=True)
        ]


def distance(
    relative_rmse: Float[Tensor, " layer"],
    error: Float[Tensor, "token layer"] | None,
    magnitude: Float[Tensor, "token layer"],
    massive: Bool[Tensor, " token"] | None,
) -> Distance:
    """The three distances of a method.

    Args:
        relative_rmse: Relative RMSE over all tokens.
        error: ‖Δ_AS − Δ_acc‖ of each token; None if it is not known.
        magnitude: ‖Δ_acc‖ of each token.
        massive: Which tokens are massive after any layer; None if it is not known.
    """
    unknown = torch.full_like(relative_rmse, torch.nan)
    if error is None:
        return Distance(relative_rmse, unknown, unknown)
    each = torch.where(magnitude > 0, error / magnitude, torch.nan)
    without = unknown
    if massive is not None:
        above, below = (values[~massive].double().square().sum(0) for values in (error, magnitude))
        without = torch.where(below > 0, (above / below).sqrt(), torch.nan).float()
    return Distance(relative_rmse, without, each.nanmedian(dim=0).values)
