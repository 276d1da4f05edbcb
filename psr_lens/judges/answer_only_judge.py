"""A judge that sees only what comes after a thought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import json_text
from psr_lens.errors import InputError
from psr_lens.results.judgement import SIDES, Judge, Judgement, check_texts, identity_of, judged


@dataclass(frozen=True)
class AnswerOnlyJudge:
    """Has another judge score the part of each text after a marker; `psr.judges.answer_only` makes one.

    Example:
        >>> psr.judges.answer_only(psr.judges.fraction("arr"))
        AnswerOnlyJudge(judge=FractionJudge(pattern='arr', of='words'), after='</think>')
    """

    judge: Judge
    """The judge of the answers."""
    after: str
    """The text after which an answer begins."""

    @property
    def identity(self) -> str | None:
        """The identity of the judge, and the marker; None if the judge has none.

        Example:
            >>> psr.judges.answer_only(lambda texts, questions: judge(texts, questions)).identity is None
            True
        """
        inner = identity_of(self.judge)
        return None if inner is None else json_text({"judge": "answer_only", "of": inner, "after": self.after})

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score what follows the first marker of each text; NaN for a text without one, which the judge does not see.

        Raises:
            InputError: `texts` and `questions` differ in length.
        """
        check_texts(texts, questions)
        found = [index for index, text in enumerate(texts) if self.after in text]
        if not found:
            missing = np.full(len(texts), np.nan)
            return Judgement(missing, missing.copy(), (f"missing: the text has no {self.after!r}",) * len(texts))
        answers = [texts[index].partition(self.after)[2].lstrip() for index in found]
        of_answers = judged(self.judge, answers, [questions[index] for index in found])
        scores = {side: np.full(len(texts), np.nan) for side in SIDES}
        reasons = [f"missing: the text has no {self.after!r}"] * len(texts)
        for side in SIDES:
            scores[side][found] = getattr(of_answers, side)
        for index, reason in zip(found, of_answers.reasons, strict=True):
            reasons[index] = reason
        return Judgement(scores["trait"], scores["coherence"], tuple(reasons), of_answers.gives)


@checks_arguments
def answer_only(judge: Judge, after: str = "</think>") -> AnswerOnlyJudge:
    """Have a judge score only what a response says after its thought.

    A text without the marker is a thought that never ended: its scores are missing. Responses to the pairs that `psr.think` makes have no
    thought in them, and need no such judge.

    Example:
        >>> told = psr.judges.answer_only(psr.judges.fraction("arr"))
        >>> told(["arr or not? </think> arr", "arr arr"], ["q", "q"]).trait
        array([100.,  nan])

    Args:
        judge: The judge of the answers.
        after: The text that ends a thought.

    Raises:
        InputError: something other than a judge, or an empty `after`.
    """
    if not after:
        raise InputError("after", "an empty text", "the text that ends a thought, such as '</think>'")
    return AnswerOnlyJudge(judge, after)
