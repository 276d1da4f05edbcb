"""Answers of every method to the same questions, and the table rows made from their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair
from psr_lens.replacement import SteeringPlan
from psr_lens.results.bootstrap import mean_interval
from psr_lens.results.result import Result


def answer_all(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    plans: Mapping[str, SteeringPlan],
    alphas: Mapping[str, float],
    config: SamplingConfig | None,
) -> dict[str, list[Response]]:
    """One answer to each question from `none`, from `prompt` and from each plan, all with the same random streams.

    Raises:
        InputError: there are no pairs.
    """
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    answers = {
        NONE: generate(model, pairs, sampling=config),
        PROMPT: generate(model, pairs, context="prompted", sampling=config),
    }
    for name, plan in plans.items():
        answers[name] = generate(model, pairs, plan, sampling=config, alpha=alphas[name])
    return answers


def mean_row(
    method: str,
    metric: str,
    scores: Float[np.ndarray, " question"],
    *,
    trait: str = "",
    block: str = "",
    alpha: float | None = None,
) -> Result:
    """Mean of the scores, with its interval over questions; NaN counts as missing."""
    present = scores[np.isfinite(scores)]
    value = float(present.mean()) if len(present) else float("nan")
    missing = len(scores) - len(present)
    return Result(method, metric, value, len(present), mean_interval(present), trait, block, alpha, missing=missing)
