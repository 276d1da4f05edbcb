"""Two judges of one side each, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psr_lens.errors import InputError
from psr_lens.results.judgement import Judge, Judgement


@dataclass(frozen=True)
class CombinedJudge:
    """Takes the trait from one judge and the coherence from another."""

    trait: Judge
    """Whose trait scores are taken."""
    coherence: Judge
    """Whose coherence scores are taken."""

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text by both judges."""
        trait, coherence = self.trait(texts, questions), self.coherence(texts, questions)
        reasons = zip(trait.reasons, coherence.reasons, strict=True)
        return Judgement(trait.trait, coherence.coherence, tuple(f"trait: {one}; coherence: {other}" for one, other in reasons))


def combine(trait: Judge, coherence: Judge) -> CombinedJudge:
    """One judge of two: `combine(trait=psr.judges.ifeval(rows), coherence=psr.judges.perplexity(model, pairs))`.

    Raises:
        InputError: one of them is no judge.
    """
    for name, judge in (("trait", trait), ("coherence", coherence)):
        if not callable(judge):
            raise InputError(name, type(judge).__name__, "a judge, which is called with texts and questions")
    return CombinedJudge(trait, coherence)
