"""Answers of every method to the same questions, and the table rows made from their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT, Methods, Plan, plans_for, strengths
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, instruction_label
from psr_lens.results.bootstrap import mean_interval
from psr_lens.results.judgement import Judge, Judgement, checked_judge, judged_by_name
from psr_lens.results.result import Result


@dataclass(frozen=True, repr=False)
class AnswersByMethod:
    """Answers to the same questions side by side, as `answers_by_method` returns them; a notebook and `psr.report` show them as text.

    Example:
        >>> side_by_side = psr.answers_by_method(model, pairs[:2], pirate, judge, sampling=psr.SamplingConfig(max_new_tokens=40))
        >>> list(side_by_side.answers), side_by_side.trait["A-PSR"]
        (['none', 'prompt', 'A-PSR'], (100.0, 100.0))
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    questions: tuple[str, ...]
    """The questions, as they were asked."""
    answers: Mapping[str, tuple[str, ...]]
    """One answer to each question without steering (`none`), with the instruction (`prompt`), and with each method."""
    alphas: Mapping[str, float]
    """Strength of each method."""
    trait: Mapping[str, tuple[float, ...]]
    """The trait score of each answer, 0–100, NaN where it is missing; empty without a judge."""
    instructions: tuple[str, ...] = ()
    """The instruction of each question; empty if all have the same."""

    def __post_init__(self) -> None:
        """Refuse answers and scores that are not one for each question."""
        given = [(f"{field}[{name!r}]", each) for field in ("answers", "trait") for name, each in getattr(self, field).items()]
        for what, each in (*given, *([("instructions", self.instructions)] if self.instructions else [])):
            if len(each) != len(self.questions):
                raise InputError(what, f"{len(each)} of them", f"one for each of {len(self.questions)} questions")

    @property
    def asked(self) -> tuple[str, ...]:
        """The questions, each with its instruction in brackets if they differ.

        Example:
            >>> few = psr.SamplingConfig(max_new_tokens=8)
            >>> both = psr.prompt_pairs(model, ["what is a bear ?", "what is a pan ?"], ["talk like a pirate .", "be brief ."])
            >>> psr.answers_by_method(model, both, pirate, sampling=few).asked
            ('what is a bear ? [talk like a pirate .]', 'what is a pan ? [be brief .]')
        """
        if not self.instructions:
            return self.questions
        return tuple(f"{question} [{instruction}]" for question, instruction in zip(self.questions, self.instructions, strict=True))

    @checks_arguments
    def heading(self, method: str) -> str:
        """The method's name, with its strength where that is not 1.

        Example:
            >>> few = psr.SamplingConfig(max_new_tokens=8)
            >>> psr.answers_by_method(model, pairs[:1], pirate, alpha=1.5, sampling=few).heading("A-PSR")
            'A-PSR (α = 1.5)'
        """
        alpha = self.alphas.get(method, 1.0)
        return method if alpha == 1 else f"{method} (α = {alpha:g})"

    def __repr__(self) -> str:
        """Instruction, number of questions and methods in one line."""
        count = f"{len(self.questions)} question{'' if len(self.questions) == 1 else 's'}"
        return f"AnswersByMethod({self.instruction!r}, {count}; methods: {', '.join(self.answers)})"

    def _repr_html_(self) -> str:
        rows = [[question, *row] for question, *row in zip(self.asked, *self.answers.values(), strict=True)]
        return table(["question", *map(self.heading, self.answers)], rows, f"Answers: {self.instruction}")


@checks_arguments
def answers_by_method(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    methods: Methods,
    judge: Judge | None = None,
    *,
    alpha: float | Mapping[str, float] = 1.0,
    sampling: SamplingConfig | None = None,
) -> AnswersByMethod:
    """Answer some questions without steering, with the prompt and with each method, with the same random streams.

    Args:
        model: The model; it is not changed.
        pairs: Questions that nothing was fitted on.
        methods: One replacement, plan or adapter, or several by name.
        judge: Scores the trait of each answer; None leaves scores out.
        alpha: Strength: one for all replacements, or one for each by name.
        sampling: How answers are drawn.

    Raises:
        InputError: no pairs, no methods, or a reserved name.
        ArtifactError: a replacement was made for another model.

    Example:
        >>> psr.answers_by_method(model, pairs[:2], pirate, sampling=psr.SamplingConfig(max_new_tokens=8))
        AnswersByMethod('talk like a pirate', 2 questions; methods: none, prompt, A-PSR)
    """
    plans = plans_for(model, methods, (NONE, PROMPT))
    alphas = strengths(alpha, list(plans))
    if judge is not None:
        checked_judge(judge)
    found = {name: tuple(each.text for each in some) for name, some in answer_all(model, pairs, plans, alphas, sampling).items()}
    asked = [pair.asked for pair in pairs]
    verdicts = {} if judge is None else judged_by_name(judge, found, asked)
    return judged_answers(pairs, found, alphas, verdicts)


def judged_answers(
    pairs: Sequence[PromptPair],
    answers: Mapping[str, tuple[str, ...]],
    alphas: Mapping[str, float],
    verdicts: Mapping[str, Judgement],
) -> AnswersByMethod:
    """Existing answers by method, with the judge's scores."""
    traits = {name: tuple(map(float, verdict.trait)) for name, verdict in verdicts.items()}
    instructions = tuple(pair.instruction for pair in pairs)
    asked = tuple(pair.asked for pair in pairs)
    return AnswersByMethod(
        instruction_label(pairs), asked, answers, alphas, traits, instructions if len({*instructions}) > 1 else ()
    )


def answer_all(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    plans: Mapping[str, Plan],
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
