"""Bootstrap intervals of numbers that are made of many responses.

Tokens of one response are not independent, so whole responses are drawn. A statistic is a function of the weights of the responses, how
often each was drawn, which is all that sums, ratios of sums and correlations need. All statistics of one set of responses see the same
draws, so that their differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from psr_lens.results.table import Interval

RESAMPLES: Final = 2_000
"""Resamples of a number."""

RANK_RESAMPLES: Final = 500
"""Resamples of a rank correlation, for which every one sorts anew."""

_AT_ONCE: Final = 2**22
"""Most numbers in memory at once while ranks are made."""
_FLAT: Final = 1e-9
"""A variance below this share of the mean square is rounding."""

Statistic = Callable[[Float[np.ndarray, "resample response"]], Float[np.ndarray, " resample *layer"]]
"""From how often each response counts to a number, or one a layer."""


@dataclass(frozen=True)
class Estimate:
    """A number, or one a layer, with its 95 % bootstrap interval over responses; NaN where it could not be measured."""

    value: Float[np.ndarray, "*layer"]
    """The number itself."""
    low: Float[np.ndarray, "*layer"]
    """Lower end; NaN with fewer than two responses."""
    high: Float[np.ndarray, "*layer"]
    """Upper end."""
    n: int
    """Responses behind it."""

    def interval(self, *layer: int) -> Interval:
        """Both ends as numbers, of one layer where there are several."""
        return (float(self.low[layer]), float(self.high[layer]))


@lru_cache(maxsize=4)
def draws(n: int, resamples: int = RESAMPLES, seed: int = 0) -> Float[np.ndarray, "resample response"]:
    """How often each of `n` things stands in each resample; for one number of things and one seed always the same."""
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    drawn.setflags(write=False)  # it is shared
    return drawn


def estimate(statistic: Statistic, n: int, *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95) -> Estimate:
    """A statistic of `n` responses, with the percentiles of what it is on resamples of them.

    Args:
        statistic: From weights of the responses to the number.
        n: Number of responses.
        resamples: How many times to draw.
        seed: Seed of the draws.
        level: What the interval covers.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.asarray(statistic(np.ones((1, n)))[0])
        drawn = statistic(draws(n, resamples, seed))
    if n < 2:
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan), n)
    # A resample on which the statistic is undefined says nothing about its spread.
    known = np.isfinite(drawn).any(axis=0) & np.isfinite(value)
    low, high = np.nanquantile(np.where(known, drawn, 0.0), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Estimate(value, np.asarray(np.where(known, low, np.nan)), np.asarray(np.where(known, high, np.nan)), n)


def ratio(
    numerator: Float[np.ndarray, " response *layer"], denominator: Float[np.ndarray, " response *layer"]
) -> Callable[[Float[np.ndarray, "resample response"]], Float[np.ndarray, " resample *layer"]]:
    """The statistic Σ numerator / Σ denominator; NaN where the latter is 0."""

    def statistic(weights: Float[np.ndarray, "resample response"]) -> Float[np.ndarray, " resample *layer"]:
        below = weights @ denominator
        return np.where(below != 0, (weights @ numerator) / below, np.nan)

    return statistic


def pearson(
    x: Float[np.ndarray, " token"], y: Float[np.ndarray, " token"], response: Int[np.ndarray, " token"], n: int
) -> Estimate:
    """Pearson correlation over the tokens of `n` responses; NaN where x or y is the same on every token.

    Args:
        x: One number a token.
        y: Another.
        response: Which response each token belongs to.
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
    """Spearman's rank correlation, ties at their mean rank; arguments as for `pearson`. Every resample is ranked anew."""
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
