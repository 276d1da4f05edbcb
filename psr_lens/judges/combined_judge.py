"""The trait from one judge, the coherence from another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import json_text
from psr_lens.errors import InputError
from psr_lens.results.judgement import SIDES, Judge, Judgement, check_texts, identity_of


@dataclass(frozen=True)
class CombinedJudge:
    """Takes trait scores from one judge and coherence scores from another.

    Example:
        >>> both = psr.judges.combine(trait=psr.judges.ifeval("punctuation:no_comma"), coherence=judge)
        >>> both.trait
        IfevalJudge('punctuation:no_comma')
    """

    trait: Judge
    """Judge of the trait."""
    coherence: Judge
    """Judge of coherence."""

    @property
    def identity(self) -> str | None:
        """The identities of both judges; None if one of them has none.

        Example:
            >>> psr.judges.combine(trait=judge, coherence=lambda texts, questions: judge(texts, questions)).identity is None
            True
        """
        parts = {"trait": identity_of(self.trait), "coherence": identity_of(self.coherence)}
        return None if None in parts.values() else json_text({"judge": "combine", **parts})

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text with both judges; each reason quotes both.

        Raises:
            InputError: `texts` and `questions` differ in length.
        """
        check_texts(texts, questions)
        trait, coherence = self.trait(texts, questions), self.coherence(texts, questions)
        reasons = zip(trait.reasons, coherence.reasons, strict=True)
        return Judgement(
            trait=trait.trait,
            coherence=coherence.coherence,
            reasons=tuple(f"trait: {one}; coherence: {other}" for one, other in reasons),
            gives=SIDES,
        )


@checks_arguments
def combine(trait: Judge, coherence: Judge) -> CombinedJudge:
    """Combine two judges: `trait` gives the trait scores, `coherence` the coherence scores.

    Example:
        >>> both = psr.judges.combine(trait=psr.judges.ifeval("punctuation:no_comma"), coherence=judge)
        >>> scores = both(["the bear is strong ."], ["what is a bear ?"])
        >>> float(scores.trait[0]), float(scores.coherence[0])
        (100.0, 0.0)

    Raises:
        InputError: one of them is not callable.
    """
    for name, judge in (("trait", trait), ("coherence", coherence)):
        if not callable(judge):
            raise InputError(name, type(judge).__name__, "a judge, callable with texts and questions")
    return CombinedJudge(trait=trait, coherence=coherence)
