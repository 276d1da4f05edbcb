"""The result of `evaluate`: curves over the strength, the trait at a target coherence, and differences between methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.numbers import counted
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import PROMPT
from psr_lens.evaluation.trait_at_coherence import OUTCOMES, Outcome, at_target
from psr_lens.results.bootstrap import Interval, mean, percentile_interval, resampled_means
from psr_lens.results.judgement import SIDES, Judgement, Side
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

PROMPT_TARGET: Final = "TA@Cp"


@dataclass(frozen=True, eq=False, repr=False)
class Point:
    """One method at one strength, question by question."""

    alpha: float | None
    """Strength; None without steering."""
    trait: Float[np.ndarray, " question"]
    """Trait scores, 0–100; NaN is missing."""
    coherence: Float[np.ndarray, " question"]
    """Coherence scores, 0–100; NaN is missing."""
    answers: tuple[str, ...]
    """The answers."""
    gives: tuple[Side, ...] | None = None
    """The kinds of score that the judge gives, as in `Judgement`."""

    def __repr__(self) -> str:
        """Strength, mean scores and number of answers in one line."""
        at = "" if self.alpha is None else f"α = {self.alpha:g}, "
        return f"Point({at}trait {self.mean('trait'):.1f}, coherence {self.mean('coherence'):.1f}; {counted(len(self.answers), 'answer')})"

    @property
    def judgement(self) -> Judgement:
        """The scores as the judge gave them, without reasons."""
        return Judgement(self.trait, self.coherence, ("",) * len(self.trait), self.gives)

    @property
    def present(self) -> Bool[np.ndarray, " question"]:
        """Which answers count: those with every kind of score that the judge gives."""
        return self.judgement.present

    def count(self, score: str) -> int:
        """Number of answers that count and have a trait or coherence score; 0 for a score that the judge does not give."""
        return int((self.present & np.isfinite(getattr(self, score))).sum())

    def mean(self, score: str) -> float:
        """Mean trait or coherence of the answers that count; NaN if there are none."""
        return mean(getattr(self, score), self.present)

    def resampled(self, score: str) -> Float[np.ndarray, " resample"]:
        """Mean trait or coherence in each resample of the questions."""
        return resampled_means(getattr(self, score), self.present)


@dataclass(frozen=True)
class Calibrated:
    """What one method reaches at a target coherence."""

    method: str
    """Name of the method."""
    metric: str
    """`TA@C80` and so on, or `TA@Cp` at the coherence of prompting."""
    target: float
    """The target coherence."""
    alpha: float | None
    """Strength at the target; None for the prompt, NaN if unmeasured."""
    trait: float
    """Trait at the target, 0–100; NaN if unmeasured."""
    interval: Interval
    """95 % bootstrap interval of the trait; the strength is found again in each resample."""
    outcome: Outcome
    """Whether the target was reached; see `psr_lens.evaluation.trait_at_coherence`."""

    @property
    def note(self) -> str:
        """A sentence if the target was not reached; empty otherwise."""
        where = f"{self.method}, {self.metric}:"
        if self.outcome == "above":
            return f"{where} coherence never falls to {self.target:.1f}; this is the best trait, at α = {self.alpha:g}."
        if self.outcome == "below":
            return f"{where} coherence never reaches {self.target:.1f}; this is the trait at the most coherent α = {self.alpha:g}."
        return f"{where} coherence could not be measured." if self.outcome == "unmeasured" else ""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Methods on the same questions with the same random streams, as `evaluate` returns them.

    Example:
        >>> few = psr.SamplingConfig(max_new_tokens=8)
        >>> found = psr.evaluate(model, pairs[:2], pirate, judge, calibration=psr.Calibration(targets=(80,), steps=1), sampling=few)
        >>> [point.alpha for point in found.curves["A-PSR"]][:2]
        [0.0, 1.0]
    """

    curves: Mapping[str, tuple[Point, ...]]
    """Points of each method in ascending order of strength; a single one for `none` and for `prompt`."""
    targets: Mapping[str, float]
    """Target coherence by metric, `{"TA@C80": 80.0, "TA@Cp": 97.3}`."""
    questions: tuple[str, ...]
    """The questions."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """How it was measured."""

    def __repr__(self) -> str:
        """Questions, methods, strengths and targets in one line."""
        curves = ", ".join(f"{name} ({len(points)})" for name, points in self.curves.items())
        targets = ", ".join(self.targets) or "none"
        return f"Evaluation({counted(len(self.questions), 'question')}; methods (strengths): {curves}; targets: {targets})"

    @checks_arguments
    def calibrated(self, method: str, metric: str = "TA@C80") -> Calibrated:
        """What a method reaches at a target coherence.

        The interval comes from resamples of the questions. In each, all strengths (and the prompt, whose coherence is the target of TA@Cp)
        are averaged over the same questions, and the strength is found again, because other questions could lead to another strength, which
        is part of the number's uncertainty. Intervals at a fixed strength leave it out, and are too narrow where trait and coherence move
        in opposite directions.

        Raises:
            InputError: unknown method or metric, or a method without a strength (`none`; the prompt, except for TA@Cp).

        Example:
            >>> few = psr.SamplingConfig(max_new_tokens=8)
            >>> found = psr.evaluate(model, pairs[:2], pirate, judge, calibration=psr.Calibration(targets=(80,), steps=1), sampling=few)
            >>> found.calibrated("A-PSR", "TA@C80").target
            80.0
        """
        found = self._at(method, metric)
        return Calibrated(
            method,
            metric,
            self.targets[metric],
            found.alpha,
            found.value,
            percentile_interval(found.draws, found.n),
            OUTCOMES[found.outcome],
        )

    @checks_arguments
    def difference(self, first: str, second: str, metric: str = "TA@C80", *, alpha: float | None = None) -> Result:
        """First method minus second on the same questions, with an interval from resamples that both share.

        Args:
            first: A method.
            second: Another method.
            metric: `trait`, `coherence`, or one of `targets`.
            alpha: For `trait` and `coherence`, the strength at which to compare; `none` and `prompt` have none.

        Raises:
            InputError: unknown method or metric, or a strength that was not measured.

        Example:
            >>> few = psr.SamplingConfig(max_new_tokens=50)
            >>> found = psr.evaluate(model, pairs[:2], pirate, judge, calibration=psr.Calibration(targets=(80,), steps=1), sampling=few)
            >>> found.difference("A-PSR", "none", "trait", alpha=1.0).value
            100.0
        """
        one, other = (self._at(name, metric, alpha) for name in (first, second))
        less = min(one, other, key=lambda each: each.n)
        found = less._replace(value=one.value - other.value, draws=one.draws - other.draws)
        return self._row(f"{first} − {second}", metric, found)

    @checks_arguments
    def table(self, *, trait: str = "", block: str = "", settings: Mapping[str, object] | None = None) -> ResultTable:
        """Trait and coherence of every method at every strength that was measured, and its trait at every target.

        Args:
            trait: Trait, concept or instruction id, as a label of the rows.
            block: Kind of questions, as a label of the rows.
            settings: What a reader needs to run it again, added to the table's settings.

        Example:
            >>> few, curves = psr.SamplingConfig(max_new_tokens=8), psr.Calibration(targets=(), at_prompt=False)
            >>> found = psr.evaluate(model, pairs[:2], pirate, judge, calibration=curves, sampling=few)
            >>> [(row.method, row.alpha) for row in found.table(trait="pirate").select(metric="trait")]
            [('none', None), ('prompt', None), ('A-PSR', 0.0), ('A-PSR', 1.0)]
        """
        rows = []
        for method, points in self.curves.items():
            found: list[tuple[str, _Number]] = [(side, self._at(method, side, point.alpha)) for point in points for side in SIDES]
            found += [(metric, self._at(method, metric)) for metric in self._metrics(method)]
            rows += [self._row(method, metric, each, trait, block) for metric, each in found]
        about = {**self.settings, "targets": dict(self.targets), "notes": self.notes}
        return ResultTable(tuple(rows), {**about, **(settings or {})})

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        return self.table()._repr_html_()

    def to_markdown(self) -> str:
        """Two tables, the trait at each target and the curves, with a sentence for every target that was not reached.

        Example:
            >>> few, curves = psr.SamplingConfig(max_new_tokens=8), psr.Calibration(targets=(), at_prompt=False)
            >>> print(psr.evaluate(model, pairs[:2], pirate, judge, calibration=curves, sampling=few).to_markdown())
            2 questions; mean scores 0–100 with 95 % bootstrap intervals.
            ...
            | A-PSR | 1 | ...
        """
        table = self.table()
        curves = table.select(metric=SIDES).to_markdown(("method", "alpha"), "metric")
        reached = table.select(metric=tuple(self.targets))
        targets = ", ".join(f"{metric}: coherence {target:.1f}" for metric, target in self.targets.items())
        lines = [f"{counted(len(self.questions), 'question')}; mean scores 0–100 with 95 % bootstrap intervals.\n"]
        if len(reached):
            lines += [
                f"Trait at a target coherence ({targets}):\n",
                reached.to_markdown(),
                *(f"- {note}" for note in self.notes),
                "",
            ]
        return "\n".join([*lines, "At every strength:\n", curves])

    @property
    def notes(self) -> list[str]:
        """A sentence for every target that was not reached."""
        found = [self.calibrated(method, metric).note for method in self.curves for metric in self._metrics(method)]
        return [note for note in found if note]

    def _row(self, method: str, metric: str, found: _Number, trait: str = "", block: str = "") -> Result:
        interval, missing = percentile_interval(found.draws, found.n), len(self.questions) - found.n
        return Result(method, metric, found.value, found.n, interval, trait, block, found.alpha, missing=missing)

    def _metrics(self, method: str) -> list[str]:
        """The target metrics that a method has."""
        if self._curve(method)[0].alpha is not None:
            return list(self.targets)
        return [PROMPT_TARGET] if method == PROMPT and PROMPT_TARGET in self.targets else []

    def _curve(self, method: str) -> tuple[Point, ...]:
        if method not in self.curves:
            raise InputError("method", repr(method), f"one of {', '.join(self.curves)}")
        return self.curves[method]

    def _at(self, method: str, metric: str, alpha: float | None = None) -> _Number:
        """One number and its resamples; all numbers share one set of resamples of the questions."""
        points = self._curve(method)
        if metric in SIDES:
            chosen = [point for point in points if point.alpha in (None, alpha)]
            if not chosen:
                tried = ", ".join(f"{point.alpha:g}" for point in points)
                raise InputError("alpha", alpha, f"a strength at which {method} was measured: {tried}")
            return _at_point(chosen[0], metric)
        if metric not in self.targets:
            raise InputError("metric", repr(metric), f"one of {', '.join((*SIDES, *self.targets))}")
        if metric not in self._metrics(method):
            raise InputError("method", repr(method), f"a method with a strength, for {metric}")
        if points[0].alpha is None:  # prompting, at its own coherence
            return _at_point(points[0], "trait")
        return self._at_target(points, metric)

    def _at_target(self, points: tuple[Point, ...], metric: str) -> _Number:
        alphas = np.array([point.alpha for point in points], dtype=float)
        trait, coherence = (np.array([[point.mean(score) for point in points]]) for score in SIDES)
        (value,), (at,), (outcome,) = at_target(alphas, trait, coherence, self.targets[metric])
        target: float | Float[np.ndarray, " resample"] = self.targets[metric]
        if metric == PROMPT_TARGET:
            prompt = self.curves[PROMPT][0]
            target = target + prompt.resampled("coherence") - prompt.mean("coherence")
        trait, coherence = (np.stack([point.resampled(score) for point in points], axis=-1) for score in SIDES)
        draws = at_target(alphas, trait, coherence, target)
        near = [points[index] for index in {*np.flatnonzero(alphas <= at)[-1:], *np.flatnonzero(alphas >= at)[:1]}]
        n = min((point.count("trait") for point in near), default=0)
        return _Number(float(value), draws.trait, n, float(at), int(outcome))


class _Number(NamedTuple):
    """A number, what it is on each resample, and how many answers are behind it."""

    value: float
    draws: Float[np.ndarray, " resample"]
    n: int
    alpha: float | None
    outcome: int = 0


def _at_point(point: Point, score: str) -> _Number:
    return _Number(point.mean(score), point.resampled(score), point.count(score), point.alpha)
