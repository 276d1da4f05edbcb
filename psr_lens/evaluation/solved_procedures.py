"""What methods answer to tasks of several steps, and whether it is right: what steering costs where every step counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from psr_lens.datasets import Procedure
from psr_lens.evaluation.answers_by_method import answer_all
from psr_lens.evaluation.methods import Plan
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, remade


@dataclass(frozen=True, eq=False)
class Solved:
    """Answers of each method, and their scores."""

    answers: Mapping[str, tuple[str, ...]]
    """Method to its answers, in the order of the tasks."""
    scores: Mapping[str, Float[np.ndarray, " task"]]
    """Method to 100 for each right result, and 0 for each other."""


def solve(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    tasks: Sequence[Procedure],
    plans: Mapping[str, Plan],
    alphas: Mapping[str, float],
    sampling: SamplingConfig | None,
) -> Solved:
    """Have every method do the tasks.

    Args:
        model: The model.
        pairs: Their instructions are taken in turn, and put to the tasks as to their own questions; earlier messages, prefixes and
            thoughts, which belong to those questions, are left out.
        tasks: The tasks.
        plans: The methods by name.
        alphas: Strength of each method.
        sampling: How answers are drawn.
    """
    moulds = [replace(pair, earlier=(), thought_ids=(), chat=replace(pair.chat, prefix="")) for pair in pairs]
    given = [moulds[index % len(moulds)] for index in range(len(tasks))]
    asked = remade(model, given, questions=[task.question for task in tasks])
    found = answer_all(model, asked, plans, alphas, sampling)
    answers = {name: tuple(each.text for each in some) for name, some in found.items()}
    scores = {
        name: np.array([100.0 * task.is_right(text) for task, text in zip(tasks, some, strict=True)])
        for name, some in answers.items()
    }
    return Solved(answers, scores)
