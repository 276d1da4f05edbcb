"""Bootstrap intervals: one set of resamples for everything that was measured on the same questions or responses.

What is drawn is a whole question or a whole response, since the tokens of one response are not independent. A statistic is a function
of weights, how often each question was drawn; that is all that means, ratios of sums and correlations need. The draws depend only on
how many questions there are, so all statistics of the same questions share them and their differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from psr_lens._utils.numbers import counted

Interval = tuple[float, float]
"""Lower and upper end."""

NO_INTERVAL: Final[Interval] = (math.nan, math.nan)
"""An interval that is unknown: with fewer than two observations, nothing says how they vary."""

LEVEL: Final = 0.95
"""Share of the resamples inside an interval."""

RESAMPLES: Final = 2_000
"""Resamples behind an interval."""

SEED: Final = 0
"""Seed of the draws."""

_ENDS: Final = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)

Statistic = Callable[[Float[np.ndarray, "resample observation"]], Float[np.ndarray, " resample *layer"]]
"""From the weights of the observations in each resample to a number, or one a layer."""


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A number, or one a layer, with its 95 % bootstrap interval; NaN where it could not be measured."""

    value: Float[np.ndarray, "*layer"]
    """The number."""
    low: Float[np.ndarray, "*layer"]
    """Lower end of the interval; NaN with fewer than two observations."""
    high: Float[np.ndarray, "*layer"]
    """Upper end of the interval; NaN with fewer than two observations."""
    n: int
    """Number of observations: questions, responses or texts."""

    def __repr__(self) -> str:
        """The number with its interval, or how many numbers there are."""
        if self.value.ndim:
            return f"Estimate({counted(self.value.shape[0], 'layer')}; n={self.n})"
        low, high = self.interval()
        return f"Estimate({float(self.value):.4g} [{low:.4g}, {high:.4g}]; n={self.n})"

    def interval(self, *layer: int) -> Interval:
        """Both ends; with an index into the layers where there are several."""
        low, high = float(self.low[layer]), float(self.high[layer])
        return (low, high) if math.isfinite(low) else NO_INTERVAL


@lru_cache(maxsize=4)
def draws(n: int, resamples: int = RESAMPLES) -> Float[np.ndarray, "resample observation"]:
    """How often each of `n` observations occurs in each resample; the same for every call with the same `n`."""
    drawn = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    drawn.setflags(write=False)  # the cache shares it
    return drawn


def estimate(statistic: Statistic, n: int, *, resamples: int = RESAMPLES) -> Estimate:
    """A statistic of `n` observations with its percentile interval.

    Args:
        statistic: From weights of the observations to the number.
        n: Number of observations.
        resamples: How many times to draw.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.asarray(statistic(np.ones((1, n)))[0])
        if n < 2:
            return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan), n)
        drawn = statistic(draws(n, resamples))
    # A resample on which the statistic is undefined says nothing about its spread.
    known = np.isfinite(drawn).any(axis=0) & np.isfinite(value)
    low, high = np.nanquantile(np.where(known, drawn, 0.0), _ENDS, axis=0)
    return Estimate(value, np.asarray(np.where(known, low, np.nan)), np.asarray(np.where(known, high, np.nan)), n)


def ratio(
    numerator: Float[np.ndarray, " observation *layer"], denominator: Float[np.ndarray, " observation *layer"]
) -> Callable[[Float[np.ndarray, "resample observation"]], Float[np.ndarray, " resample *layer"]]:
    """The statistic Σ numerator / Σ denominator; NaN where the denominator is 0."""

    def statistic(weights: Float[np.ndarray, "resample observation"]) -> Float[np.ndarray, " resample *layer"]:
        below = weights @ denominator
        return np.where(below != 0, (weights @ numerator) / below, np.nan)

    return statistic


def percentile_interval(resampled: Float[np.ndarray, " resample"], n: int) -> Interval:
    """The interval between the outer percentiles of what `n` observations gave on each resample.

    Resamples that are not finite are left out. The interval is unknown with fewer than two observations, or if no resample is left.
    """
    finite = resampled[np.isfinite(resampled)]
    if n < 2 or not len(finite):
        return NO_INTERVAL
    low, high = np.quantile(finite, _ENDS)
    return (float(low), float(high))


def mean_interval(values: Float[np.ndarray, " observation"]) -> Interval:
    """Interval of the mean; unknown with fewer than two values."""
    if len(values) < 2:
        return NO_INTERVAL
    return percentile_interval(resampled_means(values, np.ones(len(values), dtype=bool)), len(values))


def resampled_means(
    values: Float[np.ndarray, " observation"], present: Bool[np.ndarray, " observation"]
) -> Float[np.ndarray, " resample"]:
    """Mean of the present values in each resample of all of them; NaN where a resample holds none."""
    drawn = draws(len(values))
    counts = drawn @ present.astype(float)
    sums = drawn @ np.where(present, values, 0.0)
    means: Float[np.ndarray, " resample"] = np.divide(sums, counts, out=np.full(len(drawn), np.nan), where=counts > 0)
    return means


def mean(values: Float[np.ndarray, " observation"], present: Bool[np.ndarray, " observation"]) -> float:
    """Mean of the present values; NaN if there are none."""
    return float(values[present].mean()) if present.any() else math.nan
