"""Runs of neighbouring tokens: how much of a text repeats itself, and how much two texts have in common."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All runs of `n` tokens, in order; none in a shorter text."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def repeated_share(tokens: Sequence[int], n: int, before: int = 1) -> float:
    """Share of the runs of `n` tokens that occurred at least `before` times before in the same text; NaN in a shorter text.

    With `before=1` this is 1 − distinct-n.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    repeated = 0
    for run in (runs := ngrams(tokens, n)):
        repeated += seen[run] >= before
        seen[run] += 1
    return repeated / len(runs) if runs else math.nan
