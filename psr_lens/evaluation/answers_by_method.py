"""Answers of every method to the same questions, and the table rows made from their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT, Methods, Plan, plans_for, strengths
from psr_lens.evaluation.pushed_answers import PushedAnswer, is_silent, pushed_answers
from psr_lens.generation.sampling import Response, SamplingConfig, checked_sampling, generate
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, instruction_label
from psr_lens.replacement.spec import finite_number
from psr_lens.results.bootstrap import mean_interval
from psr_lens.results.judgement import Judge, Judgement, checked_judge, judged_by_name
from psr_lens.results.result import Result

SHOWN: Final = 8
"""Most questions whose answers are looked at token by token and at further strengths, and that a report shows."""
ALSO_AT: Final = (0.0, 0.5, 1.0, 1.5)
"""Strengths besides a method's own at which runs and demos show its answers."""


@dataclass(frozen=True, eq=False)
class AnswersAtStrength:
    """One method's answers to the first questions at a further strength; `answers_by_method` with `also_at` makes it.

    Example:
        >>> few = psr.SamplingConfig(max_new_tokens=4, temperature=0)
        >>> side_by_side = psr.answers_by_method(model, pairs[:1], pirate, also_at=[0, 2], sampling=few)
        >>> [(each.alpha, each.texts) for each in side_by_side.at_strengths["A-PSR"]]
        [(0.0, ('first, carry the',)), (2.0, ('arr, to begin',))]
    """

    alpha: float
    """The strength."""
    texts: tuple[str, ...]
    """The answers."""
    pushed: tuple[PushedAnswer, ...] = ()
    """The same token by token; empty for an adapter."""
    trait: tuple[float, ...] = ()
    """The trait score of each, 0–100, NaN where it is missing; empty if they were not scored."""


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
    pushed: Mapping[str, tuple[PushedAnswer, ...]] = field(default_factory=dict)
    """The answers to the first questions, at most 8, token by token: those of `prompt` and of each method that adds to activations."""
    at_strengths: Mapping[str, tuple[AnswersAtStrength, ...]] = field(default_factory=dict)
    """Each method's answers to the same first questions at further strengths."""

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
    also_at: Sequence[float] = (),
    sampling: SamplingConfig | None = None,
) -> AnswersByMethod:
    """Answer some questions without steering, with the prompt and with each method, with the same random streams.

    The answers to the first 8 questions are also read token by token, which takes one more pass over them without sampling (two for the
    prompt's): a report colours each token by how hard it was pushed.

    Args:
        model: The model; it is not changed.
        pairs: Questions that nothing was fitted on.
        methods: One replacement, plan or adapter, or several by name.
        judge: Scores the trait of each answer; None leaves scores out.
        alpha: Strength: one for all replacements, or one for each by name.
        also_at: Further strengths at which each method answers the first 8 questions, for a report in which a reader can turn the
            strength. Each costs one answer for each of these questions and methods, and its score if there is a judge; strength 0, at
            which a method without an offset does nothing, costs neither.
        sampling: How answers are drawn.

    Raises:
        InputError: no pairs, no methods, a reserved name, or a strength that is not a finite number.
        ArtifactError: a replacement was made for another model.

    Example:
        >>> psr.answers_by_method(model, pairs[:2], pirate, sampling=psr.SamplingConfig(max_new_tokens=8))
        AnswersByMethod('talk like a pirate', 2 questions; methods: none, prompt, A-PSR)
    """
    plans = plans_for(model, methods, (NONE, PROMPT))
    alphas = strengths(alpha, list(plans))
    check_also_at(also_at)
    if judge is not None:
        checked_judge(judge)
    responses = answer_all(model, pairs, plans, alphas, sampling)
    texts = {name: _texts(some) for name, some in responses.items()}
    verdicts = {} if judge is None else judged_by_name(judge, texts, [pair.asked for pair in pairs])
    found = judged_answers(pairs, texts, alphas, verdicts)
    return looked_at(found, model, pairs, plans, responses, FurtherStrengths(also_at, checked_sampling(sampling), judge))


def check_also_at(also_at: Any) -> None:
    """Check the further strengths of a report.

    Raises:
        InputError: something else than a list of finite numbers.
    """
    if not isinstance(also_at, Sequence) or isinstance(also_at, str) or any(finite_number(alpha) is None for alpha in also_at):
        given = shortened(repr(also_at), 80)
        raise InputError("also_at", given, "a list of strengths, such as [0, 0.5, 1.5]; an empty one leaves them out")


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


@dataclass(frozen=True, eq=False)
class FurtherStrengths:
    """The strengths at which the first questions are answered too, and how."""

    alphas: Sequence[float]
    """The strengths; those of the answers that there are already need not be among them."""
    sampling: SamplingConfig
    """How answers are drawn."""
    judge: Judge | None = None
    """Scores the trait of these answers; None leaves scores out."""
    answer: Callable[[str, float], Sequence[Response] | None] | None = None
    """Gives a method's answers to the first questions at a strength at which it steers, or None to leave that strength out; without it,
    those of all strengths are drawn together."""


def looked_at(
    found: AnswersByMethod,
    model: HookedModel,
    pairs: Sequence[PromptPair],
    plans: Mapping[str, Plan],
    responses: Mapping[str, Sequence[Response]],
    further: FurtherStrengths,
) -> AnswersByMethod:
    """Answers by method with the first of them token by token, and at further strengths.

    Where a strength is the same as no steering, the answers and their scores are those of `none`.

    Args:
        found: The answers as text.
        model: The model that wrote them.
        pairs: All questions.
        plans: The methods by name.
        responses: All answers, `none` and `prompt` among them.
        further: Further strengths.
    """
    first, budget = pairs[:SHOWN], further.sampling.token_budget

    def read(plan: Plan | None, alpha: float, some: Sequence[Response]) -> tuple[PushedAnswer, ...]:
        return pushed_answers(model, first, some, plan, alpha, budget)

    pushed = {PROMPT: read(None, 1.0, responses[PROMPT][:SHOWN])}
    at_strengths = {}
    for name, plan in plans.items():
        pushed[name] = read(plan, found.alphas[name], responses[name][:SHOWN])
        others = sorted({float(alpha) for alpha in further.alphas} - {found.alphas[name]})
        silent = [alpha for alpha in others if is_silent(plan, alpha)]
        written = _written(model, first, name, plan, [alpha for alpha in others if alpha not in silent], further)
        traits = _traits(first, written, further.judge)
        written |= dict.fromkeys(silent, responses[NONE][:SHOWN])
        traits |= dict.fromkeys(silent, found.trait.get(NONE, ())[:SHOWN])
        at_strengths[name] = tuple(
            AnswersAtStrength(alpha, _texts(written[alpha]), read(plan, alpha, written[alpha]), traits.get(alpha, ()))
            for alpha in sorted(written)
        )
    return replace(
        found,
        pushed={name: some for name, some in pushed.items() if some},
        at_strengths={name: some for name, some in at_strengths.items() if some},
    )


def _written(
    model: HookedModel, pairs: Sequence[PromptPair], name: str, plan: Plan, alphas: Sequence[float], further: FurtherStrengths
) -> dict[float, Sequence[Response]]:
    """One method's answers at several strengths, all drawn together, or as `further.answer` gives them."""
    if further.answer is not None:
        given = {alpha: further.answer(name, alpha) for alpha in alphas}
        return {alpha: some for alpha, some in given.items() if some is not None}
    if not alphas:
        return {}
    answers = generate(
        model,
        [*pairs] * len(alphas),
        plan,
        alpha=[alpha for alpha in alphas for _ in pairs],
        sampling=further.sampling,
        streams=[*range(len(pairs))] * len(alphas),
    )
    return {alpha: answers[at * len(pairs) : (at + 1) * len(pairs)] for at, alpha in enumerate(alphas)}


def _texts(responses: Sequence[Response]) -> tuple[str, ...]:
    return tuple(each.text for each in responses)


def _traits(
    pairs: Sequence[PromptPair], written: Mapping[float, Sequence[Response]], judge: Judge | None
) -> dict[float, tuple[float, ...]]:
    """The trait scores of answers by strength, all judged together; none without a judge."""
    if judge is None or not written:
        return {}
    verdicts = judged_by_name(judge, {str(alpha): _texts(some) for alpha, some in written.items()}, [pair.asked for pair in pairs])
    return {alpha: tuple(map(float, verdicts[str(alpha)].trait)) for alpha in written}


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
