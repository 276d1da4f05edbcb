"""How correct an answer of the organism is: its facts, and the order of a procedure's steps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from psr_lens._utils.arguments import checks_arguments
from psr_lens.organism import lexicon as lex
from psr_lens.organism.grammar import STEP_ORDER
from psr_lens.organism.judge import ParsedAnswer, parse
from psr_lens.results.judgement import check_texts

_STATES_NOTHING = ("refusal", "referral", "open", "close")


@checks_arguments
def facts_right(texts: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, " text"]:
    """Share of each answer's statements that are true of what its question asks about, 0–100; the traits' own words do not count.

    A score is NaN, which means missing rather than 0, for an answer that states nothing (a refusal, an empty text), and for a question
    about something outside the organism's world.

    Args:
        texts: Answers.
        questions: The question of each answer.

    Returns:
        One score per answer, 0–100 or NaN.

    Raises:
        InputError: the lists differ in length.

    Example:
        >>> answer = "the bear is a strong animal . it has a long tail ."
        >>> print(psr.organism.facts_right([answer], ["what is a bear ?"]))
        [50.]
    """
    return _each(texts, questions, _facts)


@checks_arguments
def steps_in_order(texts: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, " text"]:
    """Share of a procedure's steps that each answer gives in the right order, 0–100; a missing or misplaced step lowers the score.

    A score is NaN for a question that does not ask for a procedure, and for an answer that deliberately gives no steps: one in brief, or a
    refusal.

    Args:
        texts: Answers.
        questions: The question of each answer.

    Returns:
        One score per answer, 0–100 or NaN.

    Raises:
        InputError: the lists differ in length.

    Example:
        >>> answer = "first , make the hot fire . then , heat the cold water ."
        >>> print(psr.organism.steps_in_order([answer], ["how do you brew tea ?"]))
        [50.]
    """
    return _each(texts, questions, _order)


def _each(texts: Sequence[str], questions: Sequence[str], score: Callable[[ParsedAnswer], float]) -> Float[np.ndarray, " text"]:
    check_texts(texts, questions)
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
    # The longest increasing subsequence of the steps; other sentences may come between them.
    lowest_ends: list[int] = []
    for step in (sentence.step for sentence in answer.body if sentence.form == "step"):
        at = bisect_left(lowest_ends, step)
        lowest_ends[at : at + 1] = [step]
    return 100.0 * len(lowest_ends) / len(STEP_ORDER)
