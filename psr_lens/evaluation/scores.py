"""Trait and coherence of one method at one strength, from sampled answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT, Method, check_method
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import HookedModel
from psr_lens.prompts import Context, PromptPair
from psr_lens.results.bootstrap import Interval, mean, mean_interval
from psr_lens.results.judgement import Judge, Judgement, checked_judge, judged


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
