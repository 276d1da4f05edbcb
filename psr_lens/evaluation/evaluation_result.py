"""What `evaluate` found: every method's curve over the strength, what it reaches at a target coherence, and differences between methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from psr_lens.errors import InputError
from psr_lens.evaluation.trait_at_coherence import OUTCOMES, Outcome, at_target
from psr_lens.results.intervals import mean, percentiles, present_in, resampled_means
from psr_lens.results.table import Interval, Result, ResultTable

PROMPT_TARGET: Final = "TA@Cp"
SCORES: Final = ("trait", "coherence")


@dataclass(frozen=True)
class Point:
    """One method at one strength, question by question."""

    alpha: float | None
    """The strength; None without steering."""
    trait: Float[np.ndarray, " question"]
    """Trait scores, 0–100; NaN where one is missing."""
    coherence: Float[np.ndarray, " question"]
    """Coherence scores, 0–100; NaN where one is missing."""
    answers: tuple[str, ...]
    """The answers."""

    @property
    def present(self) -> Bool[np.ndarray, " question"]:
        """Which answers count: those with every score that the judge gives."""
        return present_in(self.trait, self.coherence)

    def mean(self, score: str) -> float:
        """Mean trait or coherence of the answers that count; NaN where there is none."""
        return mean(getattr(self, score), self.present)

    def resampled(self, score: str) -> Float[np.ndarray, " resample"]:
        """The same in every resample of the questions."""
        return resampled_means(getattr(self, score), self.present)


@dataclass(frozen=True)
class Calibrated:
    """What one method reaches at a target coherence."""

    method: str
    """The method."""
    metric: str
    """`TA@C80`, or `TA@Cp` at the coherence of prompting."""
    target: float
    """The coherence that was looked for."""
    alpha: float | None
    """The strength there; None for the prompt, NaN where it is unmeasured."""
    trait: float
    """The trait there; NaN where it is unmeasured."""
    interval: Interval
    """95 % bootstrap interval of the trait, the strength found anew in every resample."""
    outcome: Outcome
    """Whether the target was reached; see `psr_lens.evaluation.trait_at_coherence`."""

    @property
    def note(self) -> str:
        """A sentence where the target was not reached; else nothing."""
        where = f"{self.method}, {self.metric}:"
        if self.outcome == "above":
            return f"{where} coherence never falls to {self.target:.1f}; its best trait above that, at α = {self.alpha:g}."
        if self.outcome == "below":
            return f"{where} coherence never reaches {self.target:.1f}; the trait at its most coherent, α = {self.alpha:g}."
        return f"{where} coherence could not be measured." if self.outcome == "unmeasured" else ""


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Methods on the same questions with the same random streams."""

    curves: Mapping[str, tuple[Point, ...]]
    """Each method's points, by ascending strength; one point for `none` and `prompt`."""
    targets: Mapping[str, float]
    """Target coherence by metric, `{"TA@C80": 80.0, "TA@Cp": 97.3}`."""
    questions: tuple[str, ...]
    """The questions."""
    trait: str = ""
    """Trait, concept or instruction id, for the table."""
    block: str = ""
    """Kind of questions, for the table."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """How it was measured."""

    def __repr__(self) -> str:
        """Methods, strengths and questions in a line."""
        curves = ", ".join(f"{name} ({len(points)})" for name, points in self.curves.items())
        return f"Evaluation({len(self.questions)} questions; methods (strengths): {curves}; targets: {', '.join(self.targets)})"

    def calibrated(self, method: str, metric: str = "TA@C80") -> Calibrated:
        """What a method reaches at a target coherence.

        The interval is from resamples of the questions. In each, all strengths (and the prompt, whose coherence is the target of TA@Cp) are
        averaged over the same questions, and the strength is found anew: that other questions would have led to another
        strength is part of what is not known about the number. Holding the strength fixed leaves that out, and its intervals are too
        narrow where trait and coherence move in opposite directions.

        Raises:
            InputError: there is no such method or metric, or the method has no strength (`none`, and the prompt but for TA@Cp).
        """
        found = self._at(method, metric)
        return Calibrated(
            method, metric, self.targets[metric], found.alpha, found.value, percentiles(found.draws), OUTCOMES[found.outcome]
        )

    def difference(self, first: str, second: str, metric: str = "TA@C80", *, alpha: float | None = None) -> Result:
        """First method less second, on the same questions: the interval is from resamples that both share.

        Args:
            first: A method.
            second: Another one.
            metric: `trait`, `coherence`, or one of `targets`.
            alpha: With `trait` or `coherence`, the strength at which those are taken that have one.

        Raises:
            InputError: there is no such method, metric or strength.
        """
        one, other = (self._at(name, metric, alpha) for name in (first, second))
        interval = percentiles(one.draws - other.draws)
        return self._row(f"{first} − {second}", metric, min(one, other, key=lambda each: each.n), one.value - other.value, interval)

    def table(self) -> ResultTable:
        """Trait and coherence of every method at every strength that was tried, and its trait at every target."""
        rows = []
        for method, points in self.curves.items():
            found = [(score, self._at(method, score, point.alpha)) for point in points for score in SCORES]
            found += [(metric, self._at(method, metric)) for metric in self._metrics(method)]
            rows += [self._row(method, metric, each, each.value, percentiles(each.draws)) for metric, each in found]
        return ResultTable(tuple(rows), {**self.settings, "targets": dict(self.targets), "notes": self.notes})

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        return self.table()._repr_html_()

    def to_markdown(self) -> str:
        """Two tables, what methods reach at the targets and their curves, and a sentence for every target that was not reached."""
        table = self.table()
        curves = table.select(metric=SCORES).to_markdown(("method", "alpha"), "metric")
        reached = table.select(metric=tuple(self.targets))
        targets = ", ".join(f"{metric}: coherence {target:.1f}" for metric, target in self.targets.items())
        lines = [f"{len(self.questions)} questions; mean scores 0–100 with 95 % bootstrap intervals.\n"]
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

    def _row(self, method: str, metric: str, found: _Number, value: float, interval: Interval) -> Result:
        missing = len(self.questions) - found.n
        return Result(method, metric, value, found.n, interval, self.trait, self.block, found.alpha, missing=missing)

    def _metrics(self, method: str) -> list[str]:
        """The targets at which a method has a trait."""
        if self._curve(method)[0].alpha is not None:
            return list(self.targets)
        return [PROMPT_TARGET] if method == "prompt" and PROMPT_TARGET in self.targets else []

    def _curve(self, method: str) -> tuple[Point, ...]:
        if method not in self.curves:
            raise InputError("method", repr(method), f"one of {', '.join(self.curves)}")
        return self.curves[method]

    def _at(self, method: str, metric: str, alpha: float | None = None) -> _Number:
        """One number and its resamples, cut from one set of resamples of the questions."""
        points = self._curve(method)
        if metric in SCORES:
            chosen = [point for point in points if point.alpha in (None, alpha)]
            if not chosen:
                tried = ", ".join(f"{point.alpha:g}" for point in points)
                raise InputError("alpha", alpha, f"a strength at which {method} was tried: {tried}")
            return _at_point(chosen[0], metric)
        if metric not in self.targets:
            raise InputError("metric", repr(metric), f"one of {', '.join((*SCORES, *self.targets))}")
        if metric not in self._metrics(method):
            raise InputError("method", repr(method), f"one that has a strength, for {metric}")
        if points[0].alpha is None:  # prompting, at its own coherence
            return _at_point(points[0], "trait")
        return self._at_target(points, metric)

    def _at_target(self, points: tuple[Point, ...], metric: str) -> _Number:
        alphas = np.array([point.alpha for point in points], dtype=float)
        trait, coherence = (np.array([[point.mean(score) for point in points]]) for score in SCORES)
        (value,), (at,), (outcome,) = at_target(alphas, trait, coherence, self.targets[metric])
        target: float | Float[np.ndarray, " resample"] = self.targets[metric]
        if metric == PROMPT_TARGET:
            prompt = self.curves["prompt"][0]
            target = target + prompt.resampled("coherence") - prompt.mean("coherence")
        trait, coherence = (np.stack([point.resampled(score) for point in points], axis=-1) for score in SCORES)
        draws = at_target(alphas, trait, coherence, target)
        near = [points[place] for place in {*np.flatnonzero(alphas <= at)[-1:], *np.flatnonzero(alphas >= at)[:1]}]
        n = min((int(point.present.sum()) for point in near), default=0)
        return _Number(float(value), draws.trait, n, float(at), int(outcome))


class _Number(NamedTuple):
    """A number on its way into the table."""

    value: float
    draws: Float[np.ndarray, " resample"]
    n: int
    alpha: float | None
    outcome: int = 0


def _at_point(point: Point, score: str) -> _Number:
    n = int(point.present.sum())
    return _Number(point.mean(score), point.resampled(score), n, point.alpha)
