"""Bootstrap over questions: one set of resamples for everything that was asked the same questions, so that differences are paired."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Bool, Float

from psr_lens.results.resampling import RESAMPLES, draws
from psr_lens.results.table import NO_INTERVAL, Interval

LEVEL: Final = 0.95
"""Share of the resamples within an interval."""


def bootstrap_interval(values: Float[np.ndarray, " sample"], *, seed: int = 0, level: float = LEVEL) -> Interval:
    """Percentile bootstrap interval of the mean; NaN where there are no values."""
    if len(values) == 0:
        return NO_INTERVAL
    rng = np.random.default_rng(seed)
    return percentiles(rng.choice(values, size=(RESAMPLES, len(values))).mean(axis=1), level)


def percentiles(draws: Float[np.ndarray, " resample"], level: float = LEVEL) -> Interval:
    """The middle of what resamples gave; NaN where none of them gave a number."""
    draws = draws[np.isfinite(draws)]
    if len(draws) == 0:
        return NO_INTERVAL
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high))


def resampled_means(
    values: Float[np.ndarray, " question"], present: Bool[np.ndarray, " question"]
) -> Float[np.ndarray, " resample"]:
    """Means over the questions of each resample whose value is present; NaN where a resample has none of them."""
    drawn = draws(len(values))
    counts = drawn @ present.astype(float)
    sums = drawn @ np.where(present, values, 0.0)
    means: Float[np.ndarray, " resample"] = np.divide(sums, counts, out=np.full(len(drawn), np.nan), where=counts > 0)
    return means


def mean(values: Float[np.ndarray, " question"], present: Bool[np.ndarray, " question"]) -> float:
    """Mean over the questions whose value is present; NaN where none is."""
    return float(values[present].mean()) if present.any() else float("nan")


def present_in(trait: Float[np.ndarray, " question"], coherence: Float[np.ndarray, " question"]) -> Bool[np.ndarray, " question"]:
    """Which answers count: those with both scores, or with the one that there is from a judge that leaves the other NaN everywhere."""
    sides = [side for side in (np.isfinite(trait), np.isfinite(coherence)) if side.any()]
    found: Bool[np.ndarray, " question"] = np.logical_and.reduce(sides) if sides else np.zeros(len(trait), dtype=bool)
    return found
