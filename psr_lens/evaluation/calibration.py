"""Choosing a strength or a layer by scores: the best of some strengths, one that does as well as the prompt, the best layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError
from psr_lens.evaluation.answer_cache import AnswerCache
from psr_lens.evaluation.methods import Method, check_method
from psr_lens.evaluation.scores import Scores, scores_at, summed
from psr_lens.fitting.fit import fit
from psr_lens.fitting.settings.solvers import FitConfig
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, Triplet
from psr_lens.replacement import Replacement
from psr_lens.results.judgement import SIDES, Judge, Side, checked_judge


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
    found = AnswerCache(model, pairs, checked_judge(judge), sampling).at(replacement, alphas)
    name = method or replacement.method
    return _best([summed(name, each.judgement, alpha) for alpha, each in zip(alphas, found, strict=True)], min_coherence)


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
    its coherence, each less a margin, is taken. If none has, it is the one that falls short of the prompt least, in the trait or in the
    coherence, whichever is further below. With a judge of the trait alone, coherence does not count.

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
        InputError: no strengths, no pairs, a negative margin, an argument of the wrong type, or a judge that gives no trait, or scores
            the answers at no strength as it does those to the prompt.
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
    curve, short = [], {}
    for alpha in sorted(alphas):
        curve.append(scores_at(model, pairs, replacement, judge, alpha=alpha, sampling=sampling))
        # A score that is missing falls short of anything.
        short[alpha] = max(getattr(prompt, side) - _lowest_if_missing(getattr(curve[-1], side)) for side in given)
        if short[alpha] <= margin:
            return replace(replacement, recommended_alpha=alpha)
    _checked_sides(curve, 0.0)
    if not math.isfinite(min(short.values())):
        got = f"one that gave the prompt a score of {' and '.join(given)}, and the answers at no strength"
        raise InputError("judge", got, "one that can score the steered answers", "Its reasons say what it could not score.")
    return replace(replacement, recommended_alpha=min(short, key=lambda alpha: short[alpha]))


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
