"""Medians over tokens, with bootstrap intervals over the responses that the tokens belong to."""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import Float, Int

from psr_lens.results.bootstrap import Estimate, draws, percentile_interval
from psr_lens.results.correlation import RANK_RESAMPLES

_STEPS: Final = 256
"""Most values among which the median of a resample is looked for; with more tokens they are evenly spaced in rank."""


def median(values: Float[np.ndarray, "token layer"], response: Int[np.ndarray, " token"], n: int) -> Estimate:
    """The median over the tokens of `n` responses in each layer: the smallest value that at least half of the tokens do not exceed.

    Args:
        values: One number for each token and layer; NaN where there is none.
        response: Index of the response that each token belongs to.
        n: Number of responses.
    """
    middle, low, high = np.array([_median(column, response, n) for column in values.T]).T
    return Estimate(middle, low, high, n)


def _median(values: Float[np.ndarray, " token"], response: Int[np.ndarray, " token"], n: int) -> tuple[float, float, float]:
    known = ~np.isnan(values)
    values, response = values[known], response[known]
    if not len(values):
        return (np.nan, np.nan, np.nan)
    ordered = np.sort(values)
    middle = float(ordered[(len(ordered) - 1) // 2])
    if n < 2:
        return (middle, np.nan, np.nan)
    steps = ordered[np.unique(np.linspace(0, len(ordered) - 1, min(_STEPS, len(ordered))).round().astype(int))]
    at = response * len(steps) + np.searchsorted(steps, values)
    upto = np.bincount(at, minlength=n * len(steps)).reshape(n, len(steps)).cumsum(axis=1)
    drawn = draws(n, RANK_RESAMPLES) @ upto.astype(float)
    found = steps[(2 * drawn >= drawn[:, -1:]).argmax(axis=1)]
    return (middle, *percentile_interval(np.where(drawn[:, -1] > 0, found, np.nan), n))
