"""Runs of neighbouring tokens: how much of a text repeats itself, and how much two texts have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All runs of `n` tokens, in order; none in a shorter text."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def repeated_share(tokens: Sequence[int], n: int) -> float:
    """Share of the runs of `n` tokens that occurred before in the same text: 1 − distinct-n; NaN in a shorter text."""
    runs = ngrams(tokens, n)
    return 1 - len(set(runs)) / len(runs) if runs else math.nan
