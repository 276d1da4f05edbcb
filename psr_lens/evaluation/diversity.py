"""Whether answers repeat themselves or each other, which a steered model does long before a judge of coherence sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float

from psr_lens._utils.ngrams import ngrams, repeated_share

DISTINCT: Final = "distinct-3"
"""Metric of each answer: the percentage of its trigrams of tokens that are distinct (Li et al. 2016, arXiv 1510.03055)."""

SIMILAR: Final = "self-similarity"
"""Metric of each answer: the percentage of trigrams that it shares with another one, |A ∩ B| / |A ∪ B|, mean over all other answers; the
same text in answer to every question has 100."""

_N: Final = 3


def diversity(answers: Sequence[Sequence[int]]) -> Mapping[str, Float[np.ndarray, " answer"]]:
    """Both metrics of each answer; NaN for an answer of fewer than three tokens, and for the similarity where there is no other answer.

    Args:
        answers: Token ids of answers to different questions.
    """
    runs = [set(ngrams(answer, _N)) for answer in answers]
    shared = np.full((len(runs), len(runs)), np.nan)
    for row, first in enumerate(runs):
        for column in range(row):
            if first and (second := runs[column]):
                both = len(first & second)
                shared[row, column] = shared[column, row] = 100 * both / (len(first) + len(second) - both)
    known = np.isfinite(shared)
    counts = known.sum(1)
    similar = np.divide(np.where(known, shared, 0.0).sum(1), counts, out=np.full(len(runs), np.nan), where=counts > 0)
    return {DISTINCT: np.array([100 * (1 - repeated_share(answer, _N)) for answer in answers], dtype=float), SIMILAR: similar}
