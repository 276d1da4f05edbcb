"""The protocol that every judge meets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from psr_lens.errors import InputError


@dataclass(frozen=True)
class Judgement:
    """Scores of some texts; NaN marks a score that is missing, which is never the same as 0."""

    trait: Float[np.ndarray, " text"]
    """How much of the trait each text has, 0–100."""
    coherence: Float[np.ndarray, " text"]
    """How coherent each text is as an answer, 0–100."""
    reasons: tuple[str, ...]
    """Why, one short sentence a text."""


@runtime_checkable
class Judge(Protocol):
    """Scores texts for one trait and for coherence."""

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text as an answer to the question at the same place."""


def check_judge(judge: object) -> None:
    """Refuse what cannot be called as a judge.

    Raises:
        InputError: `judge` is not a function of texts and questions.
    """
    if not callable(judge) or isinstance(judge, type):
        got = repr(judge) if judge is None or isinstance(judge, str) else type(judge).__name__
        raise InputError("judge", got, "a judge: a function of texts and questions", "For example `psr.judges.organism('pirate')`.")


def judged(judge: Judge, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
    """Ask a judge, and check that it scored every text.

    Raises:
        InputError: `judge` cannot be called, returns no `Judgement`, or returns more or fewer scores than there are texts.
    """
    check_judge(judge)
    found: object = judge(texts, questions)
    if not isinstance(found, Judgement):
        raise InputError("judge", f"{type(found).__name__} from the judge", "a `Judgement`")
    sizes = (len(found.trait), len(found.coherence), len(found.reasons))
    if set(sizes) != {len(texts)}:
        raise InputError(
            "judge", f"{sizes} trait scores, coherence scores and reasons for {len(texts)} texts", "one of each for every text"
        )
    return found


def check_texts(texts: Sequence[str], questions: Sequence[str]) -> None:
    """Refuse what is not a question for each text.

    Raises:
        InputError: one string in place of a list, or not as many questions as texts.
    """
    if isinstance(texts, str) or isinstance(questions, str):
        raise InputError("texts" if isinstance(texts, str) else "questions", "one text", "a list of texts")
    if len(texts) != len(questions):
        raise InputError("questions", f"{len(questions)} for {len(texts)} texts", "as many questions as texts")
