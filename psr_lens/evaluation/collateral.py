"""What steering breaks besides adding the trait: fluency on neutral text, coherence, diversity, facts, traits that nobody asked for.

Prompting is measured on the same questions, so that what the instruction itself costs is not attributed to the replacement.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import check_fields, checks_arguments
from psr_lens._utils.numbers import counted
from psr_lens._utils.yaml_config import KnownSettings
from psr_lens.activations.paired_passes import TOKEN_BUDGET
from psr_lens.datasets import Procedure
from psr_lens.errors import InputError
from psr_lens.evaluation.answers_by_method import answer_all, mean_row
from psr_lens.evaluation.diversity import DISTINCT, SIMILAR, diversity
from psr_lens.evaluation.methods import NONE, PROMPT, Methods, plans_for, strengths
from psr_lens.evaluation.relative_dose import DOSE, PERCENTILE, Dose, dose_rows, doses
from psr_lens.evaluation.solved_procedures import solve
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.generation.sampling import Response, SamplingConfig
from psr_lens.models import HookedModel, fingerprint, tokenizer_of
from psr_lens.prompts import Context, PromptPair, PromptPairs, Triplet, instruction_label, prompt_pairs
from psr_lens.prompts.text_encoding import TextEncoder
from psr_lens.results.bootstrap import Estimate, estimate, ratio
from psr_lens.results.judgement import Judge, checked_judge, judged_by_name
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

PROCEDURES: Final = "procedures"
"""Metric of the procedures: 100 for a right result, else 0."""

UNWANTED: Final = "unwanted "
"""What the table puts before the name of an unwanted trait."""

_OWN_METRICS: Final = ("trait", "coherence", DISTINCT, SIMILAR, PROCEDURES)
"""Metrics of answers that are measured in any case, or by the judge."""


@runtime_checkable
class Check(Protocol):
    """Something that an answer gets right or wrong, such as `organism.facts_right`."""

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Score each text as an answer to the question with the same index, 0–100; NaN if that is not possible."""


@dataclass(frozen=True, eq=False)
class SideEffects(KnownSettings):
    """Which side effects `collateral` measures besides trait and coherence.

    Example:
        >>> psr.SideEffects(checks={"facts": psr.organism.facts_right}, unwanted={"shout": psr.judges.organism("shout")}).texts
    """

    unwanted: Mapping[str, Judge] = field(default_factory=dict)
    """Judges of traits that nobody asked for, by name; only their trait score is used, and 0 is no harm."""
    checks: Mapping[str, Check] = field(default_factory=dict)
    """What answers should get right, by name, e.g. `{"facts": organism.facts_right}`."""
    texts: Sequence[str | Triplet] | None = None
    """Neutral texts for the perplexity. Triplets are read after their own prompts; strings without a question, under the prompt after the
    instruction on a line of its own. None takes the model's own unsteered answers."""
    procedures: Sequence[Procedure] = ()
    """Multi-step tasks, such as `datasets.procedures(50)`, to run with every method, with the instruction where the method is a prompt;
    metric `procedures`: percentage of correct results."""
    dose_limit: float | None = None
    """Largest relative dose, ‖added‖ / ‖activation‖, that 99 % of the tokens should keep at every layer; a method that exceeds it is named
    by a warning, the result and its table. None for no limit."""

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        for name, given in (("unwanted", self.unwanted), ("checks", self.checks)):
            if not isinstance(given, Mapping):
                raise InputError(name, f"a value of type {type(given).__name__}", "a mapping of names to judges or checks")
            for key, each in given.items():
                checked_judge(each, f"{name}[{key!r}]") if name == "unwanted" else _check_callable(each, f"{name}[{key!r}]")
        check_fields(self)
        if taken := [name for name in self.checks if name in _OWN_METRICS]:
            raise InputError("checks", f"the name {taken[0]!r}", f"names other than {', '.join(map(repr, _OWN_METRICS))}")
        if self.dose_limit is not None and not 0 < self.dose_limit < math.inf:
            raise InputError("dose_limit", repr(self.dose_limit), "a number above 0, or None for no limit")
        if self.texts is not None and not self.texts:
            raise InputError(
                "texts", repr(self.texts), "a list of texts or triplets, not empty", "Leave it out for the model's own answers."
            )


def _check_callable(check: Any, argument: str) -> None:
    if not callable(check):
        raise InputError(argument, f"a value of type {type(check).__name__}", "a function of texts and questions")


@dataclass(frozen=True, eq=False, repr=False)
class Collateral:
    """What the prompt and its replacements do to answers besides adding the trait, as `collateral` returns it.

    Example:
        >>> found = psr.collateral(model, pairs[:2], pirate, judge, sampling=psr.SamplingConfig(max_new_tokens=8))
        >>> list(found.scores), found.surprise["A-PSR"].shape
        (['trait', 'coherence', 'distinct-3', 'self-similarity'], (2,))
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    alphas: Mapping[str, float]
    """Strength of each replacement."""
    answers: Mapping[str, tuple[str, ...]]
    """Answers of each method, in the order of the questions."""
    scores: Mapping[str, Mapping[str, Float[np.ndarray, " question"]]]
    """Metric, then method, to the scores of its answers, 0–100; NaN is missing. Besides those of the judges and checks there are
    `distinct-3`, the percentage of an answer's trigrams of tokens that are distinct, and `self-similarity`, the percentage of trigrams
    that it shares with another answer, |A ∩ B| / |A ∪ B|, mean over all others. Those of `procedures` are one a task."""
    surprise: Mapping[str, Float[np.ndarray, " text"]]
    """Method to Σ −log p over the tokens of each neutral text, in nats."""
    text_tokens: Float[np.ndarray, " text"]
    """Number of tokens of each neutral text."""
    doses: Mapping[str, Dose] = field(default_factory=dict)
    """What each replacement added to the activations of its own answers, relative to those activations."""
    dose_limit: float | None = None
    """Largest relative dose that 99 % of the tokens should keep at every layer; None for no limit."""
    procedures: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What each method answered to the procedures, in their order."""

    @property
    def overdosed(self) -> tuple[str, ...]:
        """The methods with a relative dose over the limit on more than 1 % of the tokens, at any layer.

        Example:
            >>> strict = psr.SideEffects(dose_limit=0.01)
            >>> found = psr.collateral(model, pairs[:2], pirate, effects=strict, sampling=psr.SamplingConfig(max_new_tokens=8))
            >>> found.overdosed
            ('A-PSR',)
        """
        limit = self.dose_limit
        return () if limit is None else tuple(name for name, dose in self.doses.items() if dose.is_over(limit))

    def __repr__(self) -> str:
        """Instruction, questions, methods and metrics in one line."""
        metrics = ", ".join([*self.scores, "perplexity", *[DOSE] * bool(self.doses)])
        methods = f"{counted(len(self.answers[NONE]), 'question')}; methods: {', '.join(self.alphas)}; metrics: {metrics}"
        over = f"; {DOSE} over {self.dose_limit:g}: {', '.join(self.overdosed)}" if self.overdosed else ""
        return f"Collateral({self.instruction!r}, {methods}{over})"

    @checks_arguments
    def perplexity(self, method: str) -> Estimate:
        """exp(mean −log p) of the tokens of the neutral texts.

        Raises:
            InputError: unknown method.

        Example:
            >>> found = psr.collateral(model, pairs[:2], pirate, sampling=psr.SamplingConfig(max_new_tokens=8))
            >>> bool(found.perplexity("none").value >= 1)
            True
        """
        mean = ratio(self._surprise(method), self.text_tokens)
        return estimate(lambda weights: np.exp(mean(weights)), len(self.text_tokens))

    @checks_arguments
    def perplexity_ratio(self, method: str) -> Estimate:
        """Perplexity divided by that of the unsteered model, on the same resamples; 1 is no harm.

        Raises:
            InputError: unknown method.

        Example:
            >>> found = psr.collateral(model, pairs[:2], pirate, sampling=psr.SamplingConfig(max_new_tokens=8))
            >>> float(found.perplexity_ratio("none").value)
            1.0
        """
        mean = ratio(self._surprise(method) - self.surprise[NONE], self.text_tokens)
        return estimate(lambda weights: np.exp(mean(weights)), len(self.text_tokens))

    def _surprise(self, method: str) -> Float[np.ndarray, " text"]:
        if method not in self.surprise:
            raise InputError("method", repr(method), f"one of {', '.join(self.surprise)}")
        return self.surprise[method]

    def _repr_html_(self) -> str:
        return self.table().select(layer=None)._repr_html_()

    @checks_arguments
    def table(self, *, trait: str = "", block: str = "", settings: Mapping[str, object] | None = None) -> ResultTable:
        """All numbers, one a row: mean scores over questions, and each score minus the prompt's on the same question (`… − prompt`).

        The relative dose has its mean, 99th percentile and maximum over the tokens of the method's own answers, at all layers together
        and at each of them; with a limit, a row says which percentage is over it, and the settings which methods are.

        Args:
            trait: Name of the trait, as a label of the rows.
            block: Kind of questions, as a label of the rows.
            settings: What a reader needs to run it again, added to the table's settings.

        Example:
            >>> found = psr.collateral(model, pairs[:2], pirate, judge, sampling=psr.SamplingConfig(max_new_tokens=8))
            >>> [row.metric for row in found.table().select(method="A-PSR")][:3]
            ['trait', 'trait − prompt', 'coherence']
        """
        rows: list[Result] = []
        for metric, methods in self.scores.items():
            for method, scores in methods.items():
                found = {metric: scores}
                if method != PROMPT:
                    found[f"{metric} − {PROMPT}"] = scores - methods[PROMPT]
                for name, values in found.items():
                    rows.append(mean_row(method, name, values, trait=trait, block=block, alpha=self.alphas.get(method)))
        for method in self.surprise:
            measured = {"perplexity": self.perplexity(method), "perplexity ratio": self.perplexity_ratio(method)}
            labels = (trait, block, self.alphas.get(method))
            rows += [Result(method, name, float(each.value), each.n, each.interval(), *labels) for name, each in measured.items()]
        for method, dose in self.doses.items():
            rows += dose_rows(method, dose, self.dose_limit, {"trait": trait, "block": block, "alpha": self.alphas[method]})
        limit = {} if self.dose_limit is None else {"dose_limit": self.dose_limit, "overdosed": list(self.overdosed)}
        return ResultTable(tuple(rows), {"model": dict(self.model), "instruction": self.instruction, **limit, **(settings or {})})


@checks_arguments
def collateral(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    methods: Methods,
    judge: Judge | None = None,
    *,
    effects: SideEffects | None = None,
    alpha: float | Mapping[str, float] = 1.0,
    sampling: SamplingConfig | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Collateral:
    """Measure what each replacement breaks, and what prompting breaks on the same questions.

    Args:
        model: The model; it is not changed.
        pairs: Questions that nothing was fitted on. `standing_pairs` makes them with an instruction that both prompts begin with.
        methods: One replacement, plan or adapter, or several by name.
        judge: Scores the trait and the coherence of the answers; None leaves them out.
        effects: Unwanted traits, checks, neutral texts, procedures and a limit on the relative dose. In any case the perplexity of the
            model's own answers, the diversity of each method's answers and the relative dose are measured.
        alpha: Strength: one for all replacements, or one for each by name.
        sampling: How answers are drawn.
        token_budget: Most tokens in a batch of neutral texts, padding included; fewer for a large vocabulary.

    Returns:
        A typed result, with `.table()`. A warning names methods that exceed the limit on the dose.

    Raises:
        InputError: no pairs, no methods, a reserved name, a text of fewer than two tokens.
        ArtifactError: a replacement was made for another model.

    Example:
        >>> facts, few = psr.SideEffects(checks={"facts": psr.organism.facts_right}), psr.SamplingConfig(max_new_tokens=8)
        >>> psr.collateral(model, pairs[:2], pirate, judge, effects=facts, sampling=few)
        Collateral('talk like a pirate', 2 questions; methods: A-PSR; metrics: trait, coherence, facts, ..., perplexity, relative dose)
    """
    plans = plans_for(model, methods, (NONE, PROMPT))
    alphas = strengths(alpha, list(plans))
    if judge is not None:
        checked_judge(judge)
    effects = effects or SideEffects()
    answers = answer_all(model, pairs, plans, alphas, sampling)
    texts = _own_answers(pairs, answers[NONE]) if effects.texts is None else _neutral(model, effects.texts, pairs[0].instruction)
    contexts: dict[str, Context] = {PROMPT: "prompted"}
    surprise = {
        name: _surprise(
            log_likelihoods(
                model,
                texts,
                plans.get(name),
                context=contexts.get(name, "base"),
                alpha=alphas.get(name, 1.0),
                token_budget=token_budget,
            )
        )
        for name in answers
    }
    written = {name: tuple(each.text for each in found) for name, found in answers.items()}
    scores = _scores(written, [pair.asked for pair in pairs], judge, effects) | _diversity(model, answers)
    solved = solve(model, pairs, effects.procedures, plans, alphas, sampling) if effects.procedures else None
    if solved is not None:
        scores[PROCEDURES] = dict(solved.scores)
    lengths = np.array([len(each.response_ids) for each in texts], dtype=float)
    given = doses(model, {name: _own_answers(pairs, answers[name]) for name in plans}, plans, alphas, token_budget)
    found = Collateral(
        instruction_label(pairs),
        fingerprint(model),
        alphas,
        written,
        scores,
        surprise,
        lengths,
        given,
        effects.dose_limit,
        {} if solved is None else solved.answers,
    )
    for name in found.overdosed:
        warnings.warn(_overdose(name, given[name], alphas[name], found.dose_limit or 0.0), UserWarning, stacklevel=3)
    return found


@checks_arguments
def standing_pairs(model: HookedModel, questions: Sequence[str], standing: str | Sequence[str], instruction: str) -> PromptPairs:
    """Pairs whose two prompts both begin with a standing instruction, like a system prompt that is always there.

    Args:
        model: Model whose tokenizer and chat template are used.
        questions: The users' questions.
        standing: What both prompts begin with; if there are several, the questions take turns.
        instruction: What the prompt with the instruction adds after it.

    Raises:
        InputError: as for `prompt_pairs`, or no standing instruction.

    Example:
        >>> standing = psr.standing_pairs(model, questions[:2], "be helpful .", "talk like a pirate .")
        >>> len(standing), standing[0].instruction
        (2, 'talk like a pirate .')
    """
    every = [standing] if isinstance(standing, str) else list(standing)
    if not every or isinstance(questions, str) or not len(questions):
        name = "standing" if not every else "questions"
        raise InputError(name, repr(standing if not every else questions), "a list of texts, not empty")
    made = [prompt_pairs(model, [each], instruction, system=every[index % len(every)]) for index, each in enumerate(questions)]
    return reduce(operator.add, made)


def _scores(
    answers: Mapping[str, tuple[str, ...]], questions: list[str], judge: Judge | None, effects: SideEffects
) -> dict[str, dict[str, Float[np.ndarray, " question"]]]:
    scores: dict[str, dict[str, Float[np.ndarray, " question"]]] = {}
    if judge is not None:
        verdicts = judged_by_name(judge, answers, questions)
        scores["trait"] = {method: each.trait for method, each in verdicts.items()}
        scores["coherence"] = {method: each.coherence for method, each in verdicts.items()}
    for name, other in effects.unwanted.items():
        unwanted = judged_by_name(other, answers, questions, f"unwanted[{name!r}]")
        scores[f"{UNWANTED}{name}"] = {method: each.trait for method, each in unwanted.items()}
    for name, check in effects.checks.items():
        scores[name] = {method: check(list(texts), questions) for method, texts in answers.items()}
    return scores


def _diversity(model: HookedModel, answers: Mapping[str, list[Response]]) -> dict[str, dict[str, Float[np.ndarray, " question"]]]:
    """Metric, then method, to how diverse its answers are; special tokens, such as the end, are left out."""
    special = frozenset(tokenizer_of(model).all_special_ids)
    by_method = {
        name: diversity([[each for each in answer.ids if each not in special] for answer in found])
        for name, found in answers.items()
    }
    return {metric: {name: found[metric] for name, found in by_method.items()} for metric in (DISTINCT, SIMILAR)}


def _overdose(name: str, dose: Dose, alpha: float, limit: float) -> str:
    highest, layer = max((dose.quantile(PERCENTILE, layer), layer) for layer in set(dose.layers))
    return (
        f"{name} at alpha={alpha:g} adds up to {highest:.2g} times the activation (99th percentile over tokens, layer {layer}), over the "
        f"limit of {limit:g}. Look at its answers, or measure at a smaller alpha."
    )


def _own_answers(pairs: Sequence[PromptPair], responses: Sequence[Response]) -> list[Triplet]:
    return [Triplet(pair, each.ids, each.text) for pair, each in zip(pairs, responses, strict=True)]


def _neutral(model: HookedModel, texts: Sequence[str | Triplet], instruction: str) -> list[Triplet]:
    """Texts as responses to a prompt of only the beginning-of-sequence token, or of their first token if the tokenizer has none."""
    tokenizer = tokenizer_of(model)
    begin = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    encoder = TextEncoder(tokenizer)

    def ids(text: str) -> list[int]:
        return list(encoder.encode(encoder.masked(text)).ids)

    neutral = []
    for index, text in enumerate(texts):
        if isinstance(text, Triplet):
            neutral.append(text)
            continue
        first, *rest = [*begin, *ids(text)] or [0]
        if not rest:
            raise InputError(f"texts[{index}]", repr(text), "a text of at least one token that others can predict", "Drop it.")
        after_instruction = (first, *ids(f"{instruction}\n")) if begin else (*ids(f"{instruction}\n"), first)
        neutral.append(Triplet(PromptPair("", instruction, (first,), after_instruction, 1), tuple(rest), text))
    return neutral


def _surprise(likelihoods: Sequence[Tensor]) -> Float[np.ndarray, " text"]:
    """Σ −log p of each response, in nats."""
    return np.array([-float(each.double().sum()) for each in likelihoods])
