"""Trait and coherence of one method at one strength, from sampled answers, and the best strength or layer by these scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT, Method, check_method
from psr_lens.fitting.fit import fit
from psr_lens.fitting.settings.solvers import FitConfig
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import HookedModel
from psr_lens.prompts import Context, PromptPair, Triplet
from psr_lens.replacement import Replacement
from psr_lens.results.bootstrap import Interval, mean, mean_interval
from psr_lens.results.judgement import SIDES, Judge, Judgement, Side, checked_judge, judged


@dataclass(frozen=True, repr=False)
class Scores:
    """Mean trait and coherence of one method's answers to some questions.

    Example:
        >>> psr.scores_at(model, pairs[:4], None, judge, sampling=psr.SamplingConfig(max_new_tokens=50))
        Scores(none: trait 0.0 [0.0, 0.0], coherence ... [..., ...]; n=4)
    """

    method: str
    """Name of the method; `none` and `prompt` for the unsteered model."""
    alpha: float | None
    """Strength of the steering; None without steering."""
    n: int
    """Number of answers that count: those with both scores, or with the only one that the judge gives."""
    missing: int
    """Number of answers that the judge could not score."""
    trait: float
    """Mean trait score, 0–100; NaN if no answer counts."""
    coherence: float
    """Mean coherence score, 0–100; NaN if no answer counts."""
    trait_interval: Interval
    """95 % bootstrap interval of the trait over questions."""
    coherence_interval: Interval
    """95 % bootstrap interval of the coherence over questions."""

    def __repr__(self) -> str:
        """Method, scores and number of answers in one line."""
        at = "" if self.alpha is None else f" at α = {self.alpha:g}"
        sides = (("trait", self.trait, self.trait_interval), ("coherence", self.coherence, self.coherence_interval))
        scores = ", ".join(f"{name} {value:.1f} [{low:.1f}, {high:.1f}]" for name, value, (low, high) in sides)
        missing = f", {self.missing} missing" if self.missing else ""
        return f"Scores({self.method}{at}: {scores}; n={self.n}{missing})"


@checks_arguments
def scores_at(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    replacement: Method | None,
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
        pairs: Questions that nothing was fitted on. With the same pairs and seed, every method gets the same random streams.
        replacement: What to steer with, one replacement, a plan of several, or an adapter; None for the unsteered model.
        judge: Scores the answers.
        alpha: Strength of the replacement.
        context: `"base"` for the prompt without the instruction, `"prompted"` for the prompt with it; a replacement steers in either.
        method: Name of the method; by default `none`, `prompt`, the replacement's own (`A-PSR`), or both (`A-PSR + prompt`).
        sampling: How answers are drawn.

    Returns:
        Mean scores with 95 % bootstrap intervals over questions.

    Raises:
        InputError: no pairs, or an argument of the wrong type.
        ArtifactError: the replacement was made for another model.

    Example:
        >>> psr.scores_at(model, pairs[:4], pirate, judge, sampling=psr.SamplingConfig(max_new_tokens=50)).trait
        100.0
    """
    if replacement is not None:
        check_method(replacement, "replacement")
    checked_judge(judge)
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    responses = generate(model, pairs, replacement, context=context, sampling=sampling, alpha=alpha)
    parts = ([replacement.method] if replacement else []) + ([PROMPT] if context == "prompted" else [])
    name = method or " + ".join(parts) or NONE
    return score(name, pairs, responses, judge, alpha=alpha if replacement else None)


def score(
    method: str, pairs: Sequence[PromptPair], responses: Sequence[Response], judge: Judge, *, alpha: float | None = None
) -> Scores:
    """Score existing answers, one to each pair."""
    return summed(method, judged(judge, [response.text for response in responses], [pair.asked for pair in pairs]), alpha)


def summed(method: str, judgement: Judgement, alpha: float | None) -> Scores:
    """Mean scores of an existing judgement."""
    present = judgement.present
    return Scores(
        method,
        None if alpha is None else float(alpha),
        int(present.sum()),
        int((~present).sum()),
        mean(judgement.trait, present),
        mean(judgement.coherence, present),
        mean_interval(judgement.trait[present]),
        mean_interval(judgement.coherence[present]),
    )


@checks_arguments
def best_alpha(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    replacement: Method,
    judge: Judge,
    *,
    alphas: Sequence[float],
    min_coherence: float = 95.0,
    method: str | None = None,
    sampling: SamplingConfig | None = None,
) -> Scores:
    """The scores at the strength with the highest trait whose coherence is at least `min_coherence`.

    If no strength is that coherent, the most coherent one is taken. Scores that are missing are never the best.

    Args:
        model: The model.
        pairs: Questions that nothing was fitted on.
        replacement: What to steer with, one replacement, a plan of several, or an adapter.
        judge: Scores the answers.
        alphas: Strengths to try.
        min_coherence: Coherence to keep, 0–100.
        method: Name of the method; by default the replacement's own.
        sampling: How answers are drawn.

    Raises:
        InputError: no strengths, no pairs, an argument of the wrong type, or a judge that gives no trait,
            or no coherence with `min_coherence` above 0.
        ArtifactError: the replacement was made for another model.

    Example:
        >>> few = psr.SamplingConfig(max_new_tokens=50)
        >>> psr.best_alpha(model, pairs[:2], pirate, judge, alphas=[0.0, 1.0], sampling=few).alpha
        1.0
    """
    check_method(replacement, "replacement")
    if not len(alphas):
        raise InputError("alphas", "an empty list", "at least one strength")
    curve = [scores_at(model, pairs, replacement, judge, alpha=alpha, method=method, sampling=sampling) for alpha in alphas]
    return _best(curve, min_coherence)


@checks_arguments
def calibrate(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    replacement: Replacement,
    judge: Judge,
    *,
    alphas: Sequence[float] = (1.0, 1.25, 1.5, 2.0),
    margin: float = 2.0,
    sampling: SamplingConfig | None = None,
) -> Replacement:
    """Find the strength at which a replacement does as well as the prompt, and keep it as `recommended_alpha`.

    Strengths are tried in ascending order, on the questions that the prompt is scored on too. The first that has the prompt's trait and
    its coherence, each less a margin, is taken. If none has, it is that with the highest trait among those with this coherence, or else
    the most coherent one. With a judge of the trait alone, coherence does not count.

    Nothing uses the strength by itself: pass it as `alpha=replacement.recommended_alpha`. It is saved with the replacement, and shown in
    its model card.

    Args:
        model: The model.
        pairs: A few questions, such as 16, that nothing was fitted on and nothing is scored on afterwards.
        replacement: What to calibrate.
        judge: Scores the answers.
        alphas: Strengths to try; 1 is what a fit aims at.
        margin: How far below those of the prompt the scores may be, which are noisy.
        sampling: How answers are drawn.

    Returns:
        The same replacement with its `recommended_alpha`.

    Raises:
        InputError: no strengths, no pairs, a negative margin, an argument of the wrong type, or a judge that gives no trait.
        ArtifactError: the replacement was made for another model.

    Example:
        >>> few = psr.SamplingConfig(max_new_tokens=50)
        >>> psr.calibrate(model, pairs[:2], pirate, judge, sampling=few).recommended_alpha
        1.0
    """
    if not len(alphas):
        raise InputError("alphas", "an empty list", "at least one strength")
    if not 0 <= margin <= 100:
        raise InputError("margin", margin, "a number from 0 to 100")
    prompt = scores_at(model, pairs, None, judge, context="prompted", sampling=sampling)
    given = _checked_sides([prompt], 0.0)
    # A judge that gives no coherence leaves the least coherence NaN, which nothing is below.
    least = {side: getattr(prompt, side) - margin for side in SIDES}
    curve = []
    for alpha in sorted(alphas):
        curve.append(scores_at(model, pairs, replacement, judge, alpha=alpha, sampling=sampling))
        if curve[-1].trait >= least["trait"] and not curve[-1].coherence < least["coherence"]:
            return replace(replacement, recommended_alpha=alpha)
    best = _best(curve, least["coherence"] if "coherence" in given else 0.0)
    return replace(replacement, recommended_alpha=best.alpha)


def _best(curve: Sequence[Scores], min_coherence: float) -> Scores:
    """The scores with the highest trait among those that are coherent enough; if none is, the most coherent ones.

    Raises:
        InputError: the judge gave no trait, or no coherence with `min_coherence` above 0.
    """
    given = _checked_sides(curve, min_coherence)
    coherent = [scores for scores in curve if scores.coherence >= min_coherence or "coherence" not in given]
    if not coherent:
        return max(curve, key=lambda scores: _lowest_if_missing(scores.coherence))
    return max(coherent, key=lambda scores: (_lowest_if_missing(scores.trait), scores.coherence))


def _checked_sides(scores: Sequence[Scores], min_coherence: float) -> tuple[Side, ...]:
    """The kinds of score present, including those required to choose a strength."""
    given = _given(scores)
    for side in SIDES:
        if side not in given and (side == "trait" or min_coherence > 0):
            needed = "both kinds of score" if side == "trait" else f"both, to keep a coherence of {min_coherence:g}"
            remedy = "`psr.judges.combine` puts two judges together" + ("." if side == "trait" else "; or give `min_coherence=0`.")
            raise InputError("judge", f"one that gave no answer a score of {side}", f"one that gives {needed}", remedy)
    return given


@checks_arguments
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
    """Fit a single-layer replacement at each candidate layer, and keep the one that scores best on validation questions.

    Args:
        model: The model.
        triplets: What to fit on.
        config: How to fit; its `layers` is replaced by each candidate.
        judge: Scores the answers.
        pairs: Validation questions, used neither for fitting nor for the final scores.
        layers: Candidate layers.
        sampling: How answers are drawn.

    Returns:
        The replacement with the highest sum of trait and coherence at alpha 1, or the highest score of the only kind that the judge gives.

    Raises:
        InputError: no layers, no pairs, an argument of the wrong type, or a judge that can score no answer.

    Example:
        >>> few = psr.SamplingConfig(max_new_tokens=8)
        >>> best = psr.best_layer(
        ...     model, triplets, psr.DiM(), judge, pairs=pairs[:2], layers=[2, 3], sampling=few
        ... )
        >>> best.settings["layers"] in (2, 3)
        True
    """
    checked_judge(judge)
    if not len(layers):
        raise InputError("layers", "an empty list", "at least one candidate layer")
    candidates = [fit(model, triplets, replace(config, layers=layer)) for layer in layers]
    scores = [scores_at(model, pairs, candidate, judge, sampling=sampling) for candidate in candidates]
    given = _given(scores)
    if not given:
        raise InputError("judge", "one that gave no answer a score", "one that can score the answers", "Look at its reasons.")
    merits = [_lowest_if_missing(sum(getattr(each, side) for side in given)) for each in scores]
    return candidates[merits.index(max(merits))]


def _given(scores: Sequence[Scores]) -> tuple[Side, ...]:
    """The kinds of score present in any result of one judge."""
    return tuple(side for side in SIDES if any(math.isfinite(getattr(each, side)) for each in scores))


def _lowest_if_missing(score: float) -> float:
    """For comparisons: none is greater than NaN, so a missing score that came first would be taken for the best."""
    return score if math.isfinite(score) else -math.inf
