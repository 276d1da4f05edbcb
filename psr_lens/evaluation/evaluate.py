"""Evaluate methods side by side: curves over the strength, and the strength at a target coherence found by search."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from psr_lens._utils.progress import progress_bar
from psr_lens._utils.yaml_config import check_keys
from psr_lens.errors import InputError
from psr_lens.evaluation.answer_cache import Answers, Judged, Steering
from psr_lens.evaluation.evaluation_result import PROMPT_TARGET, Evaluation, Point
from psr_lens.evaluation.trait_at_coherence import search
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import HookedModel
from psr_lens.prompts import Context, PromptPair
from psr_lens.replacement import Replacement, SteeringPlan
from psr_lens.results.judgement import Judge

BUILT_IN = ("none", "prompt")


@dataclass(frozen=True)
class Calibration:
    """Which coherences to look for, and how long."""

    targets: tuple[float, ...] = (80.0,)
    """Coherences, 0–100, of the metrics `TA@C80` and so on; none are allowed."""
    at_prompt: bool = True
    """Look for the coherence of prompting too: `TA@Cp`."""
    prompt_margin: float = 1.0
    """TA@Cp is at the coherence of prompting less this. Measured coherences are noisy, and near 100 without a margin a method that is
    as coherent as prompting would be told apart from it, and its strength set, by that noise."""
    maximum: float = 16.0
    """Largest strength that doubling comes to."""
    steps: int = 6
    """Most halvings a target."""
    tolerance: float = 1.0
    """The search ends at a coherence this close to the target."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Calibration:
        """Settings from a mapping, as a file gives it.

        Raises:
            InputError: one that does not exist, or cannot be meant.
        """
        check_keys("calibration", given, [each.name for each in fields(cls)])
        if not isinstance(targets := given.get("targets", ()), list | tuple):
            raise InputError("targets", repr(targets), "a list of coherences")
        return cls(**{**given, **({"targets": tuple(targets)} if "targets" in given else {})})

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        for target in self.targets:
            _in_range("targets", target, 0, 100)
        _in_range("prompt_margin", self.prompt_margin, 0, 100)
        _in_range("maximum", self.maximum, 1, math.inf)
        _in_range("tolerance", self.tolerance, 0, 100)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise InputError("steps", repr(self.steps), "a whole number, 0 or more")


def _in_range(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        what = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise InputError(name, repr(value), f"a finite number {what}")


def evaluate(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    methods: Steering | Mapping[str, Steering],
    judge: Judge,
    *,
    alphas: Sequence[float] = (1.0,),
    calibration: Calibration | None = None,
    with_prompt: bool | Collection[str] = False,
    sampling: SamplingConfig | None = None,
    cache: str | Path | None = None,
    trait: str = "",
    block: str = "",
) -> Evaluation:
    """Sample answers with every method at several strengths, score them, and find what each method reaches at a target coherence.

    The model as it is (`none`) and the prompt (`prompt`) stand beside the methods. All get the same questions and the same random
    streams. Nothing is generated twice: a strength of 0 is the model as it is (or the prompt), curves and searches share their points, and
    what lies in `cache` is read from there, so that a run that was cut off goes on and ends the same.

    The strengths: those of `alphas`; then, for each target, doubling from 1 until coherence is below it, and halving (see
    `psr_lens.evaluation.trait_at_coherence`, also for what is taken between two strengths and where a target is never reached).

    Args:
        model: The model.
        pairs: Questions that nothing was fitted on.
        methods: What to steer with, one replacement or plan, or several by name. One alone goes by its own `method`.
        judge: Scores the answers. One that gives a single side (trait or coherence) is enough for that side's curve.
        alphas: Strengths that are measured in any case, 0 or more.
        calibration: Target coherences and the search for them; `Calibration(targets=(), at_prompt=False)` for the curves alone.
        with_prompt: Methods that are tried a second time under the prompted context, as `NAME + prompt`, by their names; or True for all of
            them. Their strength 0 is the prompt.
        sampling: How answers are drawn.
        cache: A folder for answers and scores; any runs may share it. Scores are kept there if the judge is a dataclass or has an
            `identity` (a text), and only if none of them is missing.
        trait: Label for the table.
        block: Label for the table, the kind of questions.

    Returns:
        Curves, and what follows from them: `.table()`, `.calibrated(method, metric)`, `.difference(method, other, metric)`.

    Raises:
        InputError: no pairs, no methods, a name or a strength that cannot be used.
        ArtifactError: a method does not fit the model, or a file of the cache is damaged.
    """
    calibration = calibration or Calibration()
    tried = _tried(methods, with_prompt)
    for alpha in alphas:
        _in_range("alphas", alpha, 0, math.inf)
    answers = Answers(model, pairs, judge, sampling, cache)
    curves: dict[str, tuple[Point, ...]] = {
        "none": (_point(None, answers.of()),),
        "prompt": (_point(None, answers.of(context="prompted")),),
    }
    targets = {f"TA@C{target:g}": float(target) for target in calibration.targets}
    if calibration.at_prompt:
        targets[PROMPT_TARGET] = curves["prompt"][0].mean("coherence") - calibration.prompt_margin
    with progress_bar(desc="evaluate", unit="answer", initial=2 * len(pairs)) as bar:
        for name, (steering, context) in tried.items():
            bar.set_postfix_str(name)
            measure = partial(answers.at, steering, context=context)
            curves[name] = _curve(measure, alphas, targets.values(), calibration, bar)
    settings = {
        "alphas": list(map(float, alphas)),
        "calibration": asdict(calibration),
        "sampling": asdict(answers.config),
        "questions": len(pairs),
    }
    return Evaluation(curves, targets, tuple(pair.asked for pair in pairs), trait, block, settings)


def _tried(methods: Steering | Mapping[str, Steering], with_prompt: bool | Collection[str]) -> dict[str, tuple[Steering, Context]]:
    """Every method by its name, and the context in which it acts."""
    named = methods if isinstance(methods, Mapping) else {methods.method: methods}
    if not named:
        raise InputError("methods", "none", "at least one replacement or plan, or several by name")
    for name, steering in named.items():
        if name in BUILT_IN:
            raise InputError(
                "methods", f"the name {name!r}", "another name", "The model as it is and the prompt come by themselves."
            )
        if not isinstance(steering, Replacement | SteeringPlan):
            raise InputError("methods", f"{name} = {type(steering).__name__}", "a Replacement or a SteeringPlan")
    chosen = list(named) if with_prompt is True else [] if with_prompt is False else list(with_prompt)
    if isinstance(with_prompt, str) or (unknown := [name for name in chosen if name not in named]):
        got = repr(with_prompt) if isinstance(with_prompt, str) else f"{unknown}"
        raise InputError("with_prompt", got, f"True, or a list of some of {', '.join(named)}")
    alone: dict[str, tuple[Steering, Context]] = {name: (steering, "base") for name, steering in named.items()}
    both: dict[str, tuple[Steering, Context]] = {f"{name} + prompt": (named[name], "prompted") for name in chosen}
    if clash := alone.keys() & both.keys():
        raise InputError("methods", f"the name {min(clash)!r}", "another name", "It is that of a method together with the prompt.")
    return alone | both


def _point(alpha: float | None, judged: Judged) -> Point:
    return Point(None if alpha is None else float(alpha), judged.judgement.trait, judged.judgement.coherence, judged.texts)


def _curve(
    measure: Callable[[Sequence[float]], Sequence[Judged]],
    alphas: Sequence[float],
    targets: Collection[float],
    calibration: Calibration,
    bar: Any,
) -> tuple[Point, ...]:
    points: dict[float, Point] = {}
    coherence: dict[float, float] = {}

    def tell(wanted: Sequence[float]) -> None:
        for alpha, judged in zip(wanted, measure(wanted), strict=True):
            points[alpha] = _point(alpha, judged)
            coherence[alpha] = points[alpha].mean("coherence")
            bar.update(len(judged.texts))

    tell(sorted({0.0, *map(float, alphas)}))
    search(tell, coherence, targets, maximum=calibration.maximum, steps=calibration.steps, tolerance=calibration.tolerance)
    return tuple(points[alpha] for alpha in sorted(points))
