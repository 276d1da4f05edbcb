"""What a judge is, what it returns, and the checks of both."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float

from psr_lens._utils.arguments import CHECKS, check, described
from psr_lens._utils.numbers import counted, is_real
from psr_lens.errors import InputError

Side = Literal["trait", "coherence"]
"""A kind of score."""

SIDES: Final[tuple[Side, ...]] = get_args(Side)
"""Both kinds of score."""

_ROUNDING: Final = 1e-6
"""How far outside of 0 to 100 a score may lie, as a weighted mean of scores does by rounding."""


@dataclass(frozen=True, eq=False, repr=False)
class Judgement:
    """Scores of some texts; NaN is a missing score, which is never the same as 0.

    Scores may be given as any one-dimensional sequence of numbers, with None for a missing one too; they are kept as arrays of float64.

    Raises:
        InputError: scores that are no numbers, or not one a text; `reasons` that are no texts; or `gives` is no tuple of kinds of score.

    Example:
        >>> judge([triplets[0].response], [questions[0]])
        Judgement(1 text; scores: 1 trait, 1 coherence)
    """

    trait: Float[np.ndarray, " text"]
    """How much of the trait each text shows, 0–100."""
    coherence: Float[np.ndarray, " text"]
    """How coherent each text is as an answer, 0–100."""
    reasons: tuple[str, ...]
    """Why, in one short sentence per text."""
    gives: tuple[Side, ...] | None = None
    """The kinds of score that the judge gives, such as `("trait",)`; all scores of the other kind are NaN. None if it does not say: then
    those of which there is a score, so that a judge of both kinds that could give no score of one is taken for a judge of the other."""

    def __post_init__(self) -> None:
        """Keep scores as arrays, and reasons as a tuple."""
        for side in SIDES:
            object.__setattr__(self, side, _scores(getattr(self, side), side))
        reasons: object = self.reasons
        if isinstance(reasons, str) or not isinstance(reasons, Sequence) or not all(isinstance(each, str) for each in reasons):
            raise InputError(
                "reasons", described(reasons), "a tuple of texts, one a scored text", 'Without reasons: `("",) * len(texts)`.'
            )
        object.__setattr__(self, "reasons", tuple(reasons))
        given: object = self.gives
        if given is not None and (isinstance(given, str) or not isinstance(given, Collection) or not set(given) <= set(SIDES)):
            raise InputError(
                "gives", repr(given), 'None, or a tuple of "trait" and "coherence"', 'For one kind: `gives=("trait",)`.'
            )

    @property
    def sides(self) -> tuple[Side, ...]:
        """The kinds of score that the judge gives, as far as is known.

        Example:
            >>> psr.judges.Judgement(np.array([80.0]), np.array([np.nan]), ("",)).sides
            ('trait',)
        """
        return given_sides([self])

    @property
    def present(self) -> Bool[np.ndarray, " text"]:
        """Which texts count: those with every kind of score that the judge gives.

        Example:
            >>> psr.judges.Judgement(np.array([80.0]), np.array([np.nan]), ("",), gives=("trait", "coherence")).present
            array([False])
        """
        found: Bool[np.ndarray, " text"] = np.logical_and.reduce([np.isfinite(getattr(self, side)) for side in self.sides])
        return found

    def __repr__(self) -> str:
        """How many texts there are, and how many of them are scored."""
        counts = (f"{int(np.isfinite(side).sum())} {name}" for name, side in (("trait", self.trait), ("coherence", self.coherence)))
        return f"Judgement({counted(len(self.trait), 'text')}; scores: {', '.join(counts)})"


def _scores(given: Any, side: str) -> Float[np.ndarray, " text"]:
    """The scores of one kind as an array.

    Raises:
        InputError: they are no numbers, or not in one dimension.
    """
    try:
        found = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor with gradients or on a GPU, or lists of several lengths
        raise _no_scores(side, f"a value of type {type(given).__name__} ({error})") from error
    if found.ndim != 1:
        raise _no_scores(side, f"scores of shape {found.shape}")
    if found.dtype.kind not in "iuf":  # True may mean 1 or 100, and "90" anything
        for each in found.tolist():
            if each is not None and not is_real(each):
                raise _no_scores(side, f"the score {each!r}")
    return found.astype(np.float64)


def _no_scores(side: str, got: str) -> InputError:
    return InputError(side, got, "one number from 0 to 100 a text, or NaN where there is none")


@runtime_checkable
class Judge(Protocol):
    """Scores texts for one trait and for coherence: any function or object that is called like this one.

    A judge may also have a string attribute `identity`, which says everything that its scores depend on: prompts, settings, weights, and a
    version of its rules. Scores are kept on disk only for a judge that has one.

    Example:
        >>> isinstance(judge, psr.judges.Judge)
        True
    """

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text as an answer to the question with the same index."""


def check_texts(texts: Sequence[str], questions: Sequence[str]) -> None:
    """Check that each text has a question.

    Raises:
        InputError: something other than lists of texts, or `texts` and `questions` differ in length.
    """
    for name, given in (("texts", texts), ("questions", questions)):
        if isinstance(given, str):
            raise InputError(name, "one text", "a list of texts")
        check(given, Sequence[str], name)
    if len(texts) != len(questions):
        raise InputError("questions", f"{len(questions)} for {counted(len(texts), 'text')}", "as many questions as texts")


def checked_judge(judge: Any, argument: str = "judge") -> Judge:
    """A judge as it was given.

    Args:
        judge: What was given.
        argument: What the error calls it.

    Raises:
        InputError: it cannot be called with texts and questions, or is a class rather than a judge.
    """
    if isinstance(judge, type) or not isinstance(judge, Judge):
        got = f"the class {judge.__name__}" if isinstance(judge, type) else f"a value of type {type(judge).__name__}"
        raise InputError(
            argument,
            got,
            "a judge, such as `psr.judges.organism('pirate')`",
            "Arguments come in the order model, pairs, methods, judge.",
        )
    return judge


CHECKS[Judge] = checked_judge


def identity_of(judge: Judge) -> str | None:
    """What identifies a judge from one run to the next, as it says itself; None if it does not, and then its scores are not kept on disk.

    Nothing is guessed from a judge's `repr`, fields or code, which may leave out what its scores depend on.
    """
    own = getattr(judge, "identity", None)
    return own if isinstance(own, str) else None


def judged(judge: Judge, texts: Sequence[str], questions: Sequence[str], argument: str = "judge") -> Judgement:
    """What a judge says of some texts, checked.

    Raises:
        InputError: the judge returns something other than one score of each kind and one reason per text, or a score that is not from 0
            to 100.
    """
    judgement: Any = judge(texts, questions)
    if not isinstance(judgement, Judgement):
        raise InputError(argument, f"one that returns a value of type {type(judgement).__name__}", "one that returns a Judgement")
    sizes = (len(judgement.trait), len(judgement.coherence), len(judgement.reasons))
    if set(sizes) != {len(texts)}:
        raise InputError(
            argument,
            f"{sizes[0]} trait scores, {sizes[1]} coherence scores and {sizes[2]} reasons for {len(texts)} texts",
            "one of each for every text",
        )
    for side in SIDES:
        scores = getattr(judgement, side)
        outside = ~np.isnan(scores) & ~((scores >= -_ROUNDING) & (scores <= 100 + _ROUNDING))
        if outside.any():
            raise InputError(
                argument,
                f"one that gives a text the score {scores[outside][0]:g} of {side}",
                "scores from 0 to 100, or NaN where there is none",
            )
    return judgement


def judged_by_name(
    judge: Judge, answers: Mapping[str, Sequence[str]], questions: Sequence[str], argument: str = "judge"
) -> dict[str, Judgement]:
    """What a judge says of several answers to each question, by name, from one call: one that reads the questions reads each once.

    Raises:
        InputError: as for `judged`.
    """
    texts = [text for each in answers.values() for text in each]
    whole = judged(judge, texts, [*questions] * len(answers), argument)
    at = [slice(row * len(questions), (row + 1) * len(questions)) for row in range(len(answers))]
    parts = [Judgement(whole.trait[rows], whole.coherence[rows], whole.reasons[rows], whole.gives) for rows in at]
    return dict(zip(answers, parts, strict=True))


def given_sides(judgements: Iterable[Judgement]) -> tuple[Side, ...]:
    """The kinds of score that one judge gives: what it says, or else those of which there is a score in any judgement; if none, both."""
    found: set[Side] = set()
    for each in judgements:
        found |= {side for side in SIDES if np.isfinite(getattr(each, side)).any()} if each.gives is None else set(each.gives)
    return tuple(side for side in SIDES if side in found) or SIDES
