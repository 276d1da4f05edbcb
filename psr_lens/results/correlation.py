"""Correlations over tokens, with bootstrap intervals over the responses that the tokens belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from psr_lens.results.bootstrap import Estimate, estimate

RANK_RESAMPLES: Final = 500
"""Resamples of a rank correlation; each of them is ranked again, which is slow."""

_AT_ONCE: Final = 2**22
"""Most numbers in memory at once while ranks are computed."""
_FLAT: Final = 1e-9
"""A variance below this share of the mean square is rounding error."""


def pearson(
    x: Float[np.ndarray, " token"], y: Float[np.ndarray, " token"], response: Int[np.ndarray, " token"], n: int
) -> Estimate:
    """Pearson correlation over the tokens of `n` responses; NaN if x or y is the same on every token.

    Args:
        x: One number per token.
        y: Another number per token.
        response: Index of the response that each token belongs to.
        n: Number of responses.
    """
    if _flat(x) or _flat(y):
        return _unknown(n)
    x, y = x - x.mean(), y - y.mean()
    sums = np.stack([np.bincount(response, each, minlength=n) for each in (np.ones_like(x), x, y, x * x, y * y, x * y)], axis=1)

    def statistic(weights: Float[np.ndarray, "resample response"]) -> Float[np.ndarray, " resample"]:
        count, sx, sy, sxx, syy, sxy = (weights @ sums).T
        found: Float[np.ndarray, " resample"] = (count * sxy - sx * sy) / np.sqrt((count * sxx - sx**2) * (count * syy - sy**2))
        return found

    return estimate(statistic, n)


def spearman(
    x: Float[np.ndarray, " token"], y: Float[np.ndarray, " token"], response: Int[np.ndarray, " token"], n: int
) -> Estimate:
    """Spearman's rank correlation, ties at their mean rank; arguments as for `pearson`. Every resample is ranked again."""
    if _flat(x) or _flat(y):
        return _unknown(n)
    ranks_of_x, ranks_of_y = _ranker(x), _ranker(y)

    def statistic(weights: Float[np.ndarray, "resample response"]) -> Float[np.ndarray, " resample"]:
        found = []
        for part in np.array_split(weights, max(1, len(weights) * len(x) // _AT_ONCE)):
            drawn = part[:, response]
            middle = drawn.sum(axis=1, keepdims=True) / 2
            rx, ry = (ranks(drawn) - middle for ranks in (ranks_of_x, ranks_of_y))
            spread = np.sqrt((drawn * rx**2).sum(axis=1) * (drawn * ry**2).sum(axis=1))
            found.append((drawn * rx * ry).sum(axis=1) / spread)
        return np.concatenate(found)

    return estimate(statistic, n, resamples=RANK_RESAMPLES)


def mean_ranks(values: Float[np.ndarray, " token"]) -> Float[np.ndarray, " token"]:
    """Ranks from 0.5 up; equal numbers, such as the zeros of a ReLU, share their mean rank."""
    ranks: Float[np.ndarray, " token"] = _ranker(values)(np.ones((1, len(values))))[0]
    return ranks


def _ranker(
    values: Float[np.ndarray, " token"],
) -> Callable[[Float[np.ndarray, "resample token"]], Float[np.ndarray, "resample token"]]:
    """From how often each token was drawn to its rank, less a half, among all that were drawn."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))

    def ranks(drawn: Float[np.ndarray, "resample token"]) -> Float[np.ndarray, "resample token"]:
        alike = np.add.reduceat(drawn[:, order], starts, axis=1)
        middle: Float[np.ndarray, "resample token"] = (alike.cumsum(axis=1) - alike / 2)[:, group]
        return middle

    return ranks


def _flat(values: Float[np.ndarray, " token"]) -> bool:
    return len(values) < 2 or float(values.var()) <= _FLAT * float(np.square(values).mean())


def _unknown(n: int) -> Estimate:
    nan = np.array(np.nan)
    return Estimate(nan, nan, nan, n)
