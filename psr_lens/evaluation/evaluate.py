"""Evaluate methods side by side: curves over the strength, and the strength at a target coherence, found by search."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from psr_lens._utils.arguments import check_fields, checks_arguments
from psr_lens._utils.numbers import is_real, is_whole, use_plain_numbers
from psr_lens._utils.progress import progress_bar
from psr_lens._utils.yaml_config import KnownSettings, check_keys
from psr_lens.errors import InputError
from psr_lens.evaluation.answer_cache import AnswerCache, Judged
from psr_lens.evaluation.evaluation_result import PROMPT_TARGET, Evaluation, Point
from psr_lens.evaluation.methods import NONE, PROMPT, Method, Methods, methods_for
from psr_lens.evaluation.trait_at_coherence import search
from psr_lens.generation.engine import Engine
from psr_lens.generation.sampling import SamplingConfig, check_engine_can
from psr_lens.generation.sampling_config import checked_sampling
from psr_lens.models import HookedModel
from psr_lens.prompts import Context, PromptPair
from psr_lens.results.judgement import Judge, checked_judge, given_sides


@dataclass(frozen=True)
class Calibration(KnownSettings):
    """What to measure: at which strengths, also under the prompt or not, and which target coherences to look for, and how long.

    Example:
        >>> psr.Calibration(alphas=(0.5, 1.0, 2.0), targets=(80, 90)).maximum
        16.0
    """

    alphas: Sequence[float] = (1.0,)
    """Strengths that are measured in any case, 0 or more; 0 itself always is."""
    targets: Sequence[float] = (80.0,)
    """Target coherences, 0–100, of the metrics `TA@C80` and so on; may be empty."""
    at_prompt: bool = True
    """Whether to look for the coherence of prompting too, the metric `TA@Cp`."""
    prompt_margin: float = 1.0
    """TA@Cp is measured at the coherence of prompting minus this. Measured coherences are noisy: near 100 and without a margin, noise alone
    would decide whether a method that is as coherent as prompting reaches the target, and at which strength."""
    maximum: float = 16.0
    """Largest strength that the search tries."""
    steps: int = 6
    """Most halvings for each target."""
    tolerance: float = 1.0
    """The search ends at a coherence this close to the target."""
    with_prompt: bool | Collection[str] = False
    """Whether methods are also measured under the prompt, as `"A-PSR + prompt"`: True for all, or the names of some."""

    @classmethod
    @checks_arguments
    def of(cls, given: Mapping[str, Any], **elsewhere: Any) -> Calibration:
        """Settings from a mapping, such as a YAML file holds.

        Args:
            given: Names and values of settings.
            **elsewhere: Settings that are given elsewhere; the mapping may then not hold them.

        Raises:
            InputError: an unknown setting, or an invalid value.

        Example:
            >>> psr.Calibration.of({"targets": [70, 80], "steps": 3}).targets
            (70, 80)
        """
        check_keys("calibration", given, [each.name for each in fields(cls) if each.name not in elsewhere])
        settings: dict[str, Any] = {**given, **elsewhere}
        for name in ("alphas", "targets"):
            if name in settings and not isinstance(settings[name], list | tuple):
                raise InputError(name, repr(settings[name]), "a list of numbers")
        return cls(**settings)

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        check_fields(self)
        for name in ("alphas", "targets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.with_prompt, bool):
            object.__setattr__(self, "with_prompt", tuple(self.with_prompt))
        use_plain_numbers(self)
        for alpha in self.alphas:
            _in_range("alphas", alpha, 0, math.inf)
        for target in self.targets:
            _in_range("targets", target, 0, 100)
        _in_range("prompt_margin", self.prompt_margin, 0, 100)
        _in_range("maximum", self.maximum, 1, math.inf)
        _in_range("tolerance", self.tolerance, 0, 100)
        if not is_whole(self.steps) or self.steps < 0:
            raise InputError("steps", repr(self.steps), "a whole number, 0 or more")


def _in_range(name: str, value: Any, low: float, high: float) -> None:
    if not is_real(value) or not low <= value <= high or math.isinf(value):
        what = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of at least {low:g}"
        raise InputError(name, repr(value), f"a finite number {what}")


@checks_arguments
def evaluate(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    methods: Methods,
    judge: Judge,
    *,
    calibration: Calibration | None = None,
    sampling: SamplingConfig | None = None,
    cache: str | Path | None = None,
    engine: Engine | None = None,
) -> Evaluation:
    """Sample answers with every method at several strengths, score them, and find the trait at a target coherence.

    The unsteered model (`none`) and the prompt (`prompt`) are measured beside the methods, on the same questions and with the same random
    streams. Nothing is generated twice: strength 0 is the unsteered model (or the prompt), curves and searches share their points, and
    answers found in `cache` are read, so that an interrupted run continues and gives the same result.

    Args:
        model: The model.
        pairs: Questions that nothing was fitted on.
        methods: One replacement, plan or adapter, which goes by its own `method`, or several by name.
        judge: Scores the answers. A judge that gives only trait or only coherence is enough for that score's curve.
        calibration: What to measure: the strengths, also under the prompt or not, and the target coherences to look for. The search
            doubles the strength from 1 until coherence is below the target, then halves the interval;
            `psr_lens.evaluation.trait_at_coherence` has the rule.
        sampling: How answers are drawn.
        cache: A folder for answers and scores, which any runs may share. It is not used while hooks are on the model. Scores are kept only
            if the judge has a string attribute `identity`, as all judges of `psr.judges` do, and none of them is missing.
        engine: What samples in place of the model, as for `generate`; its answers are kept apart in the cache.

    Returns:
        Curves, and what follows from them: `.table()`, `.calibrated(method, metric)`, `.difference(method, other, metric)`.

    Raises:
        InputError: no pairs, no methods, a reserved name, an argument of the wrong type, or an engine that cannot sample like this.
        ArtifactError: a method was made for another model, or a file of the cache is damaged.

    Example:
        >>> few, curves = psr.SamplingConfig(max_new_tokens=8), psr.Calibration(alphas=(0.5, 1.0), targets=(), at_prompt=False)
        >>> psr.evaluate(model, pairs[:2], {"A-PSR": pirate}, judge, calibration=curves, sampling=few)
        Evaluation(2 questions; methods (strengths): none (1), prompt (1), A-PSR (3); targets: none)
    """
    calibration = calibration or Calibration()
    named = methods_for(model, methods, (NONE, PROMPT))
    tried = ways_to_answer(named, calibration)
    if engine is not None:  # before anything is sampled
        for method in (None, *named.values()):
            check_engine_can(engine, model, method, checked_sampling(sampling))
    answers = AnswerCache(model, pairs, checked_judge(judge), sampling, cache, engine)
    curves: dict[str, tuple[Point, ...]] = {
        NONE: (_point(None, answers.of()),),
        PROMPT: (_point(None, answers.of(context="prompted")),),
    }
    targets = {f"TA@C{target:g}": float(target) for target in calibration.targets}
    if calibration.at_prompt:
        targets[PROMPT_TARGET] = curves[PROMPT][0].mean("coherence") - calibration.prompt_margin
    with progress_bar(desc="evaluate", unit="answer", initial=2 * len(pairs)) as bar:
        for name, (method, context) in tried.items():
            bar.set_postfix_str(name)
            measure = partial(answers.at, method, context=context)
            curves[name] = _curve(measure, targets.values(), calibration, bar)
    # A strength at which no answer has a score of one kind says nothing about the judge; all strengths together do.
    sides = given_sides(point.judgement for curve in curves.values() for point in curve)
    curves = {name: tuple(replace(point, gives=sides) for point in curve) for name, curve in curves.items()}
    searched = asdict(calibration)
    settings = {
        "alphas": sorted({float(alpha) for alpha in searched.pop("alphas")}),
        "calibration": searched,
        "sampling": asdict(answers.config),
        "questions": len(pairs),
    }
    return Evaluation(curves, targets, tuple(pair.asked for pair in pairs), settings)


def ways_to_answer(named: Mapping[str, Method], calibration: Calibration) -> dict[str, tuple[Method, Context]]:
    """Every method by name, and the context in which it acts.

    Args:
        named: The methods by name.
        calibration: Says which of them are also measured under the prompt.

    Raises:
        InputError: its `with_prompt` names an unknown method, or a method has the name of one together with the prompt.
    """
    asked = calibration.with_prompt
    chosen = (list(named) if asked else []) if isinstance(asked, bool) else list(asked)
    if unknown := [name for name in chosen if name not in named]:
        raise InputError("with_prompt", f"{unknown}", f"True, or a list of some of {', '.join(named)}")
    alone: dict[str, tuple[Method, Context]] = {name: (method, "base") for name, method in named.items()}
    both: dict[str, tuple[Method, Context]] = {f"{name} + {PROMPT}": (named[name], "prompted") for name in chosen}
    if clash := alone.keys() & both.keys():
        raise InputError(
            "methods", f"the name {min(clash)!r}", "another name", "It is reserved for a method together with the prompt."
        )
    return alone | both


def _point(alpha: float | None, judged: Judged) -> Point:
    found = judged.judgement
    return Point(None if alpha is None else float(alpha), found.trait, found.coherence, judged.texts, found.gives)


def _curve(
    measure: Callable[[Sequence[float]], Sequence[Judged]],
    targets: Collection[float],
    calibration: Calibration,
    bar: Any,
) -> tuple[Point, ...]:
    points: dict[float, Point] = {}
    coherence: dict[float, float] = {}

    def record(wanted: Sequence[float]) -> None:
        for alpha, judged in zip(wanted, measure(wanted), strict=True):
            points[alpha] = _point(alpha, judged)
            coherence[alpha] = points[alpha].mean("coherence")
            bar.update(len(judged.texts))

    record(sorted({0.0, *map(float, calibration.alphas)}))
    search(record, coherence, targets, maximum=calibration.maximum, steps=calibration.steps, tolerance=calibration.tolerance)
    return tuple(points[alpha] for alpha in sorted(points))
