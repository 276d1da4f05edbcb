"""Histograms of positive numbers on a log scale, which give quantiles in memory that does not grow with how many numbers there are."""

from __future__ import annotations

import math
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS_PER_DECADE: Final = 128
"""Bins of equal width on the log scale; quantiles are accurate to 1 %."""
DECADES: Final = (-12, 12)
"""Range, as powers of ten; numbers outside are counted in the end bins."""
BINS: Final = (DECADES[1] - DECADES[0]) * BINS_PER_DECADE + 1
"""Number of bins; the first is for 0."""


def log_histogram(values: Float[Tensor, " value"]) -> Int[Tensor, " bin"]:
    """How many of some numbers from 0 up lie in each bin, on the CPU."""
    values = values.to("cpu", torch.float64)
    bins = ((values.log10() - DECADES[0]) * BINS_PER_DECADE).floor().clamp(0, BINS - 2).long() + 1
    return torch.bincount(bins.where(values > 0, 0), minlength=BINS)


def histogram_quantile(histogram: Int[Tensor, " bin"], q: float) -> float:
    """The smallest number that at least a share `q` of the numbers do not exceed, accurate to 1 %; 0 if there are none."""
    upto = histogram.cumsum(0)
    wanted = max(1, math.ceil(q * int(upto[-1]) - 1e-9))  # not above the product because of rounding
    bin_number = int(torch.searchsorted(upto, torch.tensor(wanted)))
    return float(10 ** (DECADES[0] + (bin_number - 0.5) / BINS_PER_DECADE)) if 0 < bin_number < BINS else 0.0
