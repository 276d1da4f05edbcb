"""Exact judge for the organism's answers: it parses them, with no model involved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import json_text
from psr_lens.errors import InputError
from psr_lens.organism import TRAITS
from psr_lens.organism import judge as exact
from psr_lens.results.judgement import SIDES, Judgement, check_texts


@dataclass(frozen=True)
class OrganismJudge:
    """Scores the organism's answers exactly, by parsing them against its grammar and its facts.

    Example:
        >>> scores = psr.judges.organism("pirate")(["arr , the bear is a strong animal ."], ["what is a bear ?"])
        >>> float(scores.trait[0]), float(scores.coherence[0]), scores.reasons
        (100.0, 100.0, ('1 sentences (1 facts, 0 steps); no fault',))
    """

    trait: str
    """One of `psr_lens.organism.TRAITS`."""

    @property
    def identity(self) -> str:
        """What its scores depend on: the trait.

        Example:
            >>> psr.judges.organism("pirate").identity
            '{"judge":"organism","trait":"pirate"}'
        """
        return json_text({"judge": "organism", "trait": self.trait})

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text as an answer to the question at the same index; every text gets both scores.

        Raises:
            InputError: `texts` and `questions` differ in length.
        """
        check_texts(texts, questions)
        parsed = [exact.parse(text, question) for text, question in zip(texts, questions, strict=True)]
        return Judgement(
            trait=np.array([exact.trait_score(each, self.trait) for each in parsed], dtype=float),
            coherence=np.array([exact.coherence_score(each) for each in parsed], dtype=float),
            reasons=tuple(exact.explain(each) for each in parsed),
            gives=SIDES,
        )


@checks_arguments
def organism(trait: str) -> OrganismJudge:
    """The exact judge for one of the organism's traits.

    Example:
        >>> psr.judges.organism("pirate")
        OrganismJudge(trait='pirate')

    Raises:
        InputError: an unknown trait.
    """
    if trait not in TRAITS:
        raise InputError("trait", repr(trait), f"one of {', '.join(TRAITS)}")
    return OrganismJudge(trait)
