"""Judges by exact rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psr_lens.errors import InputError
from psr_lens.organism import TRAITS
from psr_lens.organism import judge as exact
from psr_lens.results.judgement import Judgement


@dataclass(frozen=True)
class OrganismJudge:
    """Exact scores of the organism's answers, by parsing them."""

    trait: str
    """One of `psr_lens.organism.TRAITS`."""

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text; any text whatever gets scores."""
        if len(texts) != len(questions):
            raise InputError("questions", f"{len(questions)} for {len(texts)} texts", "as many questions as texts")
        parsed = [exact.parse(text, question) for text, question in zip(texts, questions, strict=True)]
        return Judgement(
            np.array([exact.trait_score(each, self.trait) for each in parsed], dtype=float),
            np.array([exact.coherence_score(each) for each in parsed], dtype=float),
            tuple(exact.explain(each) for each in parsed),
        )


def organism(trait: str) -> OrganismJudge:
    """The exact judge of one of the organism's traits.

    Raises:
        InputError: there is no such trait.
    """
    if trait not in TRAITS:
        raise InputError("trait", repr(trait), f"one of {', '.join(TRAITS)}")
    return OrganismJudge(trait)
