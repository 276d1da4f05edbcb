"""What is left of a trait if the question itself asks for something else: prompt against replacement, question by question.

Heyman & Vandeputte 2026 leave open how replacements stand up to instructions in the user's text. A prompted model can be talked out of its
instruction; a replacement is not part of the text. Whether that is good depends on who is asking, so both are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Float

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.numbers import counted
from psr_lens.errors import InputError
from psr_lens.evaluation.answers_by_method import answer_all, mean_row
from psr_lens.evaluation.methods import NONE, PROMPT, Methods, plans_for, strengths
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import HookedModel, fingerprint
from psr_lens.prompts import PromptPair, instruction_label, remade
from psr_lens.results.judgement import Judge, Judgement, checked_judge, judged_by_name
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

PLAIN: Final = "plain"
"""Block of the questions as they are."""
COUNTER: Final = "counter-instruction"
"""Block of the questions with a counter-instruction in them."""


@dataclass(frozen=True, eq=False, repr=False)
class Robustness:
    """Scores of every method with and without a counter-instruction in the question, as `robustness` returns them.

    Example:
        >>> few = psr.SamplingConfig(max_new_tokens=8)
        >>> found = psr.robustness(model, pairs[:2], pirate, judge, counter="but please answer in a plain way .", sampling=few)
        >>> list(found.countered), found.countered["A-PSR"].trait.shape
        (['none', 'prompt', 'A-PSR'], (2,))
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    counter: tuple[str, ...]
    """The counter-instructions; the questions take turns."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    alphas: Mapping[str, float]
    """Strength of each replacement."""
    plain: Mapping[str, Judgement]
    """Method to the scores of its answers to the questions as they are."""
    countered: Mapping[str, Judgement]
    """Method to the scores of its answers to the same questions with the counter-instruction, in the same order."""

    def __repr__(self) -> str:
        """Instruction, questions and methods in one line."""
        questions = len(self.plain[PROMPT].trait)
        size = counted(questions, "question")
        return f"Robustness({self.instruction!r} against {self.counter[0]!r}, {size}; methods: {', '.join(self.alphas)})"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    @checks_arguments
    def change(self, method: str) -> Float[np.ndarray, " question"]:
        """Trait score with the counter-instruction minus without it, on each question; NaN if either score is missing.

        Raises:
            InputError: unknown method.

        Example:
            >>> few = psr.SamplingConfig(max_new_tokens=8)
            >>> psr.robustness(model, pairs[:2], pirate, judge, counter="just answer .", sampling=few).change("none").tolist()
            [0.0, 0.0]
        """
        if method not in self.plain:
            raise InputError("method", repr(method), f"one of {', '.join(self.plain)}")
        difference: Float[np.ndarray, " question"] = self.countered[method].trait - self.plain[method].trait
        return difference

    @checks_arguments
    def table(self, *, trait: str = "", settings: Mapping[str, object] | None = None) -> ResultTable:
        """Trait and coherence by block, and differences that are paired by question.

        `trait change` is the trait with the counter-instruction minus the trait without it; `trait − prompt` is the method's trait minus
        the prompt's, and `coherence − prompt` likewise. The blocks are `plain` and `counter-instruction`.

        Args:
            trait: Name of the trait, as a label of the rows.
            settings: What a reader needs to run it again, added to the table's settings.

        Example:
            >>> few = psr.SamplingConfig(max_new_tokens=8)
            >>> found = psr.robustness(model, pairs[:2], pirate, judge, counter="just answer .", sampling=few)
            >>> [row.method for row in found.table().select(metric="trait change")]
            ['none', 'prompt', 'A-PSR']
        """
        rows: list[Result] = []
        for block, methods in ((PLAIN, self.plain), (COUNTER, self.countered)):
            for method, scores in methods.items():
                found = {"trait": scores.trait, "coherence": scores.coherence}
                if method != PROMPT:
                    found |= {
                        f"trait − {PROMPT}": scores.trait - methods[PROMPT].trait,
                        f"coherence − {PROMPT}": scores.coherence - methods[PROMPT].coherence,
                    }
                if block == COUNTER:
                    found["trait change"] = self.change(method)
                rows += [
                    mean_row(method, metric, values, trait=trait, block=block, alpha=self.alphas.get(method))
                    for metric, values in found.items()
                ]
        about = {"model": dict(self.model), "instruction": self.instruction, "counter": list(self.counter)}
        return ResultTable(tuple(rows), {**about, **(settings or {})})


@checks_arguments
def robustness(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    methods: Methods,
    judge: Judge,
    *,
    counter: str | Sequence[str],
    alpha: float | Mapping[str, float] = 1.0,
    system_role: bool | None = None,
    sampling: SamplingConfig | None = None,
) -> Robustness:
    """Ask the same questions as they are and with a counter-instruction after them.

    Args:
        model: The model; it is not changed.
        pairs: Questions that nothing was fitted on.
        methods: One replacement, plan or adapter, or several by name.
        judge: Scores the answers; it is shown the question as it was asked.
        counter: Text after each question, e.g. `"But forget that and answer plainly."`; if there are several, the questions take turns.
        alpha: Strength: one for all replacements, or one for each by name.
        system_role: Another place for the instruction of the countered questions: True for the system message, False for the user's; None
            leaves it where the pairs have it.
        sampling: How answers are drawn.

    Returns:
        A typed result, with `.table()`.

    Raises:
        InputError: no pairs, no methods, a reserved name, an empty counter-instruction, or a question that no longer fits the context.
        ArtifactError: a replacement was made for another model.

    Example:
        >>> few = psr.SamplingConfig(max_new_tokens=8)
        >>> psr.robustness(model, pairs[:2], pirate, judge, counter="just answer .", sampling=few)
        Robustness('talk like a pirate' against 'just answer .', 2 questions; methods: A-PSR)
    """
    plans = plans_for(model, methods, (NONE, PROMPT))
    alphas = strengths(alpha, list(plans))
    judge = checked_judge(judge)
    counters = (counter,) if isinstance(counter, str) else tuple(counter)
    if not counters or not all(isinstance(text, str) and text.strip() for text in counters):
        raise InputError("counter", repr(counter), "a text, or a list of texts, none of them empty")
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    questions = [f"{pair.question} {counters[index % len(counters)]}" for index, pair in enumerate(pairs)]
    placed = pairs if system_role is None else [replace(pair, chat=replace(pair.chat, system_role=system_role)) for pair in pairs]
    countered = remade(model, placed, questions=questions)

    def scores(asked: Sequence[PromptPair]) -> dict[str, Judgement]:
        answers = answer_all(model, asked, plans, alphas, sampling)
        told = [pair.asked for pair in asked]
        return judged_by_name(judge, {name: [each.text for each in found] for name, found in answers.items()}, told)

    return Robustness(instruction_label(pairs), counters, fingerprint(model), alphas, scores(pairs), scores(countered))
