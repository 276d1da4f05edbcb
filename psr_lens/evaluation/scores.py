"""How well one method does at one strength: trait and coherence of sampled answers, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from psr_lens.errors import InputError
from psr_lens.fitting.config import FitConfig
from psr_lens.fitting.fit import fit
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import HookedModel
from psr_lens.prompts import Context, PromptPair, Triplet
from psr_lens.replacement import Replacement, SteeringPlan
from psr_lens.results.intervals import bootstrap_interval, mean, present_in
from psr_lens.results.judgement import Judge, Judgement
from psr_lens.results.table import Interval


@dataclass(frozen=True)
class Scores:
    """What one method scored on a set of questions."""

    method: str
    """Name of the method; `none` and `prompt` for the model without steering."""
    alpha: float | None
    """Strength of the steering; None without."""
    n: int
    """Number of answers with both scores, or with the one that a judge of one side gives."""
    missing: int
    """Number of answers that the judge could not score."""
    trait: float
    """Mean trait score, 0–100."""
    coherence: float
    """Mean coherence score, 0–100."""
    trait_interval: Interval
    """95 % bootstrap interval of the trait."""
    coherence_interval: Interval
    """95 % bootstrap interval of the coherence."""


def scores_at(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    replacement: Replacement | SteeringPlan | None,
    judge: Judge,
    *,
    alpha: float = 1.0,
    context: Context = "base",
    method: str | None = None,
    sampling: SamplingConfig | None = None,
) -> Scores:
    """Sample an answer to every question and score it.

    Args:
        model: The model.
        pairs: Questions that nothing was fitted on. The same pairs and seed give every method the same random streams.
        replacement: What to steer with, one replacement or a plan of several; None for the model as it is.
        judge: Scores the answers.
        alpha: Strength of the replacement.
        context: `"base"` for the prompt without the instruction, `"prompted"` for the one with it, steered too if there is a replacement.
        method: Name for the table; by default `none`, `prompt`, the replacement's own (`A-PSR`), or both (`A-PSR + prompt`).
        sampling: How answers are drawn.

    Returns:
        Mean scores with 95 % bootstrap intervals over questions.

    Raises:
        InputError: there are no pairs.
    """
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    responses = generate(model, pairs, replacement, context=context, sampling=sampling, alpha=alpha)
    parts = ([replacement.method] if replacement else []) + (["prompt"] if context == "prompted" else [])
    name = method or " + ".join(parts) or "none"
    return score(name, pairs, responses, judge, alpha=alpha if replacement else None)


def score(
    method: str, pairs: Sequence[PromptPair], responses: Sequence[Response], judge: Judge, *, alpha: float | None = None
) -> Scores:
    """Score answers that are there already, one a pair."""
    return summed(method, judge([response.text for response in responses], [pair.asked for pair in pairs]), alpha)


def summed(method: str, verdict: Judgement, alpha: float | None) -> Scores:
    """Mean scores of a judgement that is there already."""
    present = present_in(verdict.trait, verdict.coherence)
    return Scores(
        method,
        alpha,
        int(present.sum()),
        int((~present).sum()),
        mean(verdict.trait, present),
        mean(verdict.coherence, present),
        bootstrap_interval(verdict.trait[present]),
        bootstrap_interval(verdict.coherence[present]),
    )


def best_alpha(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    replacement: Replacement | SteeringPlan,
    judge: Judge,
    *,
    alphas: Sequence[float],
    min_coherence: float = 95.0,
    method: str | None = None,
    sampling: SamplingConfig | None = None,
) -> Scores:
    """The scores at the strength with the highest trait whose coherence is still at least `min_coherence`.

    Where no strength is that coherent, the most coherent one is taken.

    Raises:
        InputError: no strengths were given.
    """
    if not alphas:
        raise InputError("alphas", "an empty list", "at least one strength")
    curve = [scores_at(model, pairs, replacement, judge, alpha=alpha, method=method, sampling=sampling) for alpha in alphas]
    coherent = [scores for scores in curve if scores.coherence >= min_coherence]
    if not coherent:
        return max(curve, key=lambda scores: _below_all_if_missing(scores.coherence))
    return max(coherent, key=lambda scores: (scores.trait, scores.coherence))


def best_layer(
    model: HookedModel,
    triplets: Sequence[Triplet],
    config: FitConfig,
    judge: Judge,
    *,
    pairs: Sequence[PromptPair],
    layers: Sequence[int],
    sampling: SamplingConfig | None = None,
) -> Replacement:
    """Fit a single-layer replacement at each of some layers, and keep the one that scores best on validation questions.

    Args:
        model: The model.
        triplets: What to fit on.
        config: How to fit; its `layers` is replaced by each candidate.
        judge: Scores the answers.
        pairs: Validation questions, neither fitted on nor used for the final scores.
        layers: Candidates.
        sampling: How answers are drawn.

    Returns:
        The replacement with the highest sum of trait and coherence at alpha 1.

    Raises:
        InputError: no layers were given.
    """
    if not layers:
        raise InputError("layers", "an empty list", "at least one candidate layer")
    best: tuple[float, Replacement] | None = None
    for layer in layers:
        candidate = fit(model, triplets, replace(config, layers=layer))
        scores = scores_at(model, pairs, candidate, judge, sampling=sampling)
        merit = _below_all_if_missing(scores.trait + scores.coherence)
        if best is None or merit > best[0]:
            best = (merit, candidate)
    return cast(tuple[float, Replacement], best)[1]


def _below_all_if_missing(score: float) -> float:
    """For comparing: nothing is greater than NaN, so that where one came first it would be taken for the best."""
    return score if math.isfinite(score) else -math.inf
