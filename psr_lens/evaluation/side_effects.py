"""What steering breaks beside what it is meant to do: fluency on neutral text, coherence, facts, traits that nobody asked for.

Prompting is measured on the same questions, so that what the instruction itself costs is not laid at the replacement's door.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.paired_passes import TOKEN_BUDGET
from psr_lens.errors import InputError
from psr_lens.evaluation.answers_by_method import answer_all, mean_row
from psr_lens.evaluation.methods import NONE, PROMPT, checked_plans, strengths
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.generation.sampling import Response, SamplingConfig
from psr_lens.models import HookedModel, fingerprint, tokenizer_of
from psr_lens.prompts import Context, PromptPair, PromptPairs, Triplet, prompt_pairs
from psr_lens.replacement import Replacement, SteeringPlan
from psr_lens.results.judgement import Judge
from psr_lens.results.resampling import Estimate, estimate, ratio
from psr_lens.results.table import NO_INTERVAL, Result, ResultTable

UNWANTED: Final = "unwanted "
"""What the table puts before the name of a trait that nobody asked for."""


@runtime_checkable
class Check(Protocol):
    """Something that an answer gets right or wrong, such as `organism.facts_right`."""

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Score each text as an answer to the question at the same place, 0–100; NaN where that cannot be said."""


@dataclass(frozen=True)
class Collateral:
    """What the prompt and its replacements do to answers beside the trait; every number comes with an interval."""

    instruction: str
    """The instruction of the prompt; the first, where there are several."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    alphas: Mapping[str, float]
    """Strength of each replacement."""
    answers: Mapping[str, tuple[str, ...]]
    """Each method's answers, in the order of the questions."""
    scores: Mapping[str, Mapping[str, Float[np.ndarray, " question"]]]
    """Metric, then method, to a score a question, 0–100; NaN is missing."""
    surprise: Mapping[str, Float[np.ndarray, " text"]]
    """Method to Σ −log p over the tokens of each neutral text, in nats."""
    text_tokens: Float[np.ndarray, " text"]
    """How many tokens each neutral text has."""
    trait: str = ""
    """Name of the trait, for the table."""
    block: str = ""
    """Kind of questions, for the table."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What is needed to run it again."""

    def perplexity(self, method: str) -> Estimate:
        """exp(mean −log p) of a token of the neutral texts."""
        mean = ratio(self.surprise[method], self.text_tokens)
        return estimate(lambda weights: np.exp(mean(weights)), len(self.text_tokens))

    def perplexity_ratio(self, method: str) -> Estimate:
        """Perplexity over that without steering, on the same resamples; 1 is no harm."""
        mean = ratio(self.surprise[method] - self.surprise[NONE], self.text_tokens)
        return estimate(lambda weights: np.exp(mean(weights)), len(self.text_tokens))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def table(self) -> ResultTable:
        """All numbers, one a row: mean scores over questions, and each score less the prompt's on the same question (`… − prompt`)."""
        rows: list[Result] = []
        for metric, methods in self.scores.items():
            for method, scores in methods.items():
                about = {"trait": self.trait, "block": self.block}
                rows.append(mean_row(method, metric, scores, alpha=self.alphas.get(method), **about))
                if method != PROMPT:
                    paired = scores - methods[PROMPT]
                    rows.append(mean_row(method, f"{metric} − {PROMPT}", paired, alpha=self.alphas.get(method), **about))
        for method in self.surprise:
            rows += [
                Result(
                    method,
                    metric,
                    float(found.value),
                    found.n,
                    found.interval() if np.isfinite(found.low) else NO_INTERVAL,
                    self.trait,
                    self.block,
                    self.alphas.get(method),
                )
                for metric, found in (
                    ("perplexity", self.perplexity(method)),
                    ("perplexity ratio", self.perplexity_ratio(method)),
                )
            ]
        return ResultTable(tuple(rows), {"model": dict(self.model), "instruction": self.instruction, **self.settings})


def collateral(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    methods: Mapping[str, Replacement | SteeringPlan],
    judge: Judge | None = None,
    *,
    unwanted: Mapping[str, Judge] | None = None,
    checks: Mapping[str, Check] | None = None,
    texts: Sequence[str | Triplet] | None = None,
    alpha: float | Mapping[str, float] = 1.0,
    sampling: SamplingConfig | None = None,
    trait: str = "",
    block: str = "",
    settings: Mapping[str, object] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Collateral:
    """Measure what each replacement breaks, beside what prompting breaks on the same questions.

    Args:
        model: The model; left as it was.
        pairs: Questions that nothing was fitted on. `standing_pairs` makes them with an instruction that stands in both prompts.
        methods: Names and replacements, or plans of several.
        judge: Scores the trait and the coherence of the answers.
        unwanted: Judges of traits that nobody asked for, by name; of each the trait score counts, 0 being no harm.
        checks: What answers should get right, by name, e.g. `{"facts": organism.facts_right}`.
        texts: Neutral texts for the perplexity: triplets, read after their own prompts; or strings, read without a question, after the
            instruction on a line of its own under `prompt`. If None, the model's own unsteered answers to `pairs`.
        alpha: Strength of the replacements, one for all or one for each by name.
        sampling: How answers are drawn.
        trait: Name of the trait, for the table.
        block: Kind of questions, for the table.
        settings: Anything that a reader needs to run it again.
        token_budget: Most tokens in a batch of neutral texts, padding included; fewer where the vocabulary is large.

    Returns:
        A typed result, with `.table()`.

    Raises:
        InputError: no pairs, no replacements, a reserved name, a text of less than two tokens.
        ArtifactError: a replacement was made for another model.
    """
    plans = checked_plans(model, methods, (NONE, PROMPT))
    alphas = strengths(alpha, list(plans))
    if texts is not None and (isinstance(texts, str) or not texts):
        raise InputError(
            "texts", repr(texts), "a list of texts or triplets, not empty", "Leave it out for the model's own answers."
        )
    answers = answer_all(model, pairs, plans, alphas, sampling)
    neutral = _own_answers(pairs, answers[NONE]) if texts is None else _neutral(model, texts, pairs[0].instruction)
    written = {name: [each.text for each in found] for name, found in answers.items()}
    contexts: dict[str, Context] = {PROMPT: "prompted"}
    surprise = {
        name: _surprise(
            log_likelihoods(
                model,
                neutral,
                plans.get(name),
                context=contexts.get(name, "base"),
                alpha=alphas.get(name, 1.0),
                token_budget=token_budget,
            )
        )
        for name in answers
    }
    return Collateral(
        pairs[0].instruction,
        fingerprint(model),
        alphas,
        {name: tuple(found) for name, found in written.items()},
        _scores(written, [pair.asked for pair in pairs], judge, unwanted or {}, checks or {}),
        surprise,
        np.array([len(each.response_ids) for each in neutral], dtype=float),
        trait,
        block,
        settings or {},
    )


def standing_pairs(model: HookedModel, questions: Sequence[str], standing: str | Sequence[str], instruction: str) -> PromptPairs:
    """Pairs whose two prompts both begin with a standing instruction, as a system prompt that is always there.

    Args:
        model: Model whose tokenizer and chat template are used.
        questions: The users' questions.
        standing: What both prompts say; of several, each question takes the next in turn.
        instruction: What the prompted context adds behind it.

    Raises:
        InputError: as for `prompt_pairs`.
    """
    every = [standing] if isinstance(standing, str) else list(standing)
    made = [prompt_pairs(model, [each], instruction, system=every[place % len(every)]) for place, each in enumerate(questions)]
    return reduce(operator.add, made)


def _scores(
    answers: Mapping[str, list[str]],
    questions: list[str],
    judge: Judge | None,
    unwanted: Mapping[str, Judge],
    checks: Mapping[str, Check],
) -> dict[str, dict[str, Float[np.ndarray, " question"]]]:
    scores: dict[str, dict[str, Float[np.ndarray, " question"]]] = {}
    for method, texts in answers.items():
        if judge is not None:
            verdict = judge(texts, questions)
            scores.setdefault("trait", {})[method] = verdict.trait
            scores.setdefault("coherence", {})[method] = verdict.coherence
        for name, other in unwanted.items():
            scores.setdefault(f"{UNWANTED}{name}", {})[method] = other(texts, questions).trait
        for name, check in checks.items():
            scores.setdefault(name, {})[method] = check(texts, questions)
    return scores


def _own_answers(pairs: Sequence[PromptPair], responses: Sequence[Response]) -> list[Triplet]:
    return [Triplet(pair, each.ids, each.text) for pair, each in zip(pairs, responses, strict=True)]


def _neutral(model: HookedModel, texts: Sequence[str | Triplet], instruction: str) -> list[Triplet]:
    """Texts as responses to a prompt of their first token alone, the beginning-of-sequence token where there is one."""
    tokenizer = tokenizer_of(model)
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]

    def ids(text: str) -> list[int]:
        return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]

    neutral = []
    for place, text in enumerate(texts):
        if isinstance(text, Triplet):
            neutral.append(text)
            continue
        first, *rest = [*begin, *ids(text)] or [0]
        if not rest:
            raise InputError(f"texts[{place}]", repr(text), "a text of at least one token that others can predict", "Drop it.")
        after_instruction = (first, *ids(f"{instruction}\n")) if begin else (*ids(f"{instruction}\n"), first)
        neutral.append(Triplet(PromptPair("", instruction, (first,), after_instruction, 1), tuple(rest), text))
    return neutral


def _surprise(likelihoods: Sequence[Tensor]) -> Float[np.ndarray, " text"]:
    """Σ −log p of each response, in nats."""
    return np.array([-float(each.double().sum()) for each in likelihoods])
