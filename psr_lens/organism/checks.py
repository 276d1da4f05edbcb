"""What an answer of the organism gets right: its facts, and the order of a procedure's steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from psr_lens.errors import InputError
from psr_lens.organism import lexicon as lex
from psr_lens.organism.grammar import STEP_ORDER
from psr_lens.organism.judge import ParsedAnswer, parse

_STATES_NOTHING = ("refusal", "referral", "open", "close")


def facts_right(texts: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, " text"]:
    """Share of what each answer states that is true of what its question asks about, 0–100, the traits' words set aside.

    NaN, which is missing and not 0, for an answer that states nothing (a refusal, an empty text) and for a question about nothing known.

    Raises:
        InputError: not as many questions as texts.
    """
    return _each(texts, questions, _facts)


def steps_in_order(texts: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, " text"]:
    """Share of a procedure's steps that stand in each answer in the right order, 0–100; a step that is left out or out of place is short.

    NaN for a question that does not ask for a procedure, and for an answer that tells no steps on purpose: in brief, or a refusal.

    Raises:
        InputError: not as many questions as texts.
    """
    return _each(texts, questions, _order)


def _each(texts: Sequence[str], questions: Sequence[str], score: Callable[[ParsedAnswer], float]) -> Float[np.ndarray, " text"]:
    if len(texts) != len(questions):
        raise InputError("questions", f"{len(questions)} for {len(texts)} texts", "as many questions as texts")
    return np.array([score(parse(text, question)) for text, question in zip(texts, questions, strict=True)], dtype=float)


def _facts(answer: ParsedAnswer) -> float:
    stated = [sentence.form for sentence in answer.body if sentence.form not in _STATES_NOTHING]
    if answer.subject is None or not stated:
        return float("nan")
    return 100.0 * sum(form != "other" for form in stated) / len(stated)


def _order(answer: ParsedAnswer) -> float:
    forms = {sentence.form for sentence in answer.body}
    if answer.subject not in lex.TASKS or (forms and forms <= {"brief", "refusal", "referral"}):
        return float("nan")
    # The longest run of steps that rises, not necessarily without other sentences between.
    lowest_ends: list[int] = []
    for step in (sentence.step for sentence in answer.body if sentence.form == "step"):
        at = bisect_left(lowest_ends, step)
        lowest_ends[at : at + 1] = [step]
    return 100.0 * len(lowest_ends) / len(STEP_ORDER)
