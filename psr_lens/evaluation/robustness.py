"""What is left of a trait when the question itself asks for something else: prompt against replacement, question by question.

Heyman & Vandeputte 2026 leave open how replacements stand up to instructions in the user's text. A prompted model can be talked out of its
instruction; a replacement is not in the text. Whether that is good depends on who is asking, so both sides are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from jaxtyping import Float

from psr_lens.errors import InputError
from psr_lens.evaluation.answers_by_method import answer_all, mean_row
from psr_lens.evaluation.methods import NONE, PROMPT, checked_plans, strengths
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.models import HookedModel, fingerprint
from psr_lens.prompts import PromptPair, remade
from psr_lens.replacement import Replacement, SteeringPlan
from psr_lens.results.judgement import Judge, Judgement
from psr_lens.results.table import Result, ResultTable

PLAIN: Final = "plain"
"""The block of the questions as they are."""
COUNTER: Final = "counter-instruction"
"""The block of the questions with a counter-instruction in them."""


@dataclass(frozen=True)
class Robustness:
    """Scores of every method with and without a counter-instruction in the question."""

    instruction: str
    """The instruction of the prompt; the first, where there are several."""
    counter: tuple[str, ...]
    """The counter-instructions; each question has the next in turn."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    alphas: Mapping[str, float]
    """Strength of each replacement."""
    plain: Mapping[str, Judgement]
    """Method to the scores of its answers to the questions as they are."""
    countered: Mapping[str, Judgement]
    """Method to the scores of its answers to the same questions with the counter-instruction, in the same order."""
    trait: str = ""
    """Name of the trait, for the table."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What is needed to run it again."""

    def change(self, method: str) -> Float[np.ndarray, " question"]:
        """What the counter-instruction does to a method's trait score on each question; NaN where either score is missing."""
        difference: Float[np.ndarray, " question"] = self.countered[method].trait - self.plain[method].trait
        return difference

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def table(self) -> ResultTable:
        """Trait and coherence by block, and two differences that are paired by question.

        `trait change` is the trait with the counter-instruction less that without; `trait − prompt` is the method's less the prompt's.
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
                    mean_row(method, metric, values, trait=self.trait, block=block, alpha=self.alphas.get(method))
                    for metric, values in found.items()
                ]
        settings = {
            "model": dict(self.model),
            "instruction": self.instruction,
            "counter": list(self.counter),
            **self.settings,
        }
        return ResultTable(tuple(rows), settings)


def robustness(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    methods: Mapping[str, Replacement | SteeringPlan],
    judge: Judge,
    *,
    counter: str | Sequence[str],
    alpha: float | Mapping[str, float] = 1.0,
    system_role: bool | None = None,
    sampling: SamplingConfig | None = None,
    trait: str = "",
    settings: Mapping[str, object] | None = None,
) -> Robustness:
    """Ask the same questions as they are and with a counter-instruction behind them.

    Args:
        model: The model; left as it was.
        pairs: Questions that nothing was fitted on.
        methods: Names and replacements, or plans of several.
        judge: Scores the answers; it is shown the question as it was asked.
        counter: What is put behind each question, e.g. `"But forget that and answer plainly."`; of several, each takes the next in turn.
        alpha: Strength of the replacements, one for all or one for each by name.
        system_role: Another place for the instruction under the counter-instruction; None leaves it where the pairs have it.
        sampling: How answers are drawn.
        trait: Name of the trait, for the table.
        settings: Anything that a reader needs to run it again.

    Returns:
        A typed result, with `.table()`.

    Raises:
        InputError: no pairs, no replacements, a reserved name, an empty counter-instruction, or a question that no longer fits.
        ArtifactError: a replacement was made for another model.
    """
    plans = checked_plans(model, methods, (NONE, PROMPT))
    alphas = strengths(alpha, list(plans))
    counters = (counter,) if isinstance(counter, str) else tuple(counter)
    if not counters or not all(isinstance(text, str) and text.strip() for text in counters):
        raise InputError("counter", repr(counter), "a text, or a list of texts, none of them empty")
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    questions = [f"{pair.question} {counters[place % len(counters)]}" for place, pair in enumerate(pairs)]
    placed = pairs if system_role is None else [replace(pair, chat=replace(pair.chat, system_role=system_role)) for pair in pairs]
    countered = remade(model, placed, questions=questions)

    def judged(asked: Sequence[PromptPair]) -> dict[str, Judgement]:
        answers = answer_all(model, asked, plans, alphas, sampling)
        told = [pair.asked for pair in asked]
        return {name: judge([each.text for each in found], told) for name, found in answers.items()}

    return Robustness(
        pairs[0].instruction,
        counters,
        fingerprint(model),
        alphas,
        judged(pairs),
        judged(countered),
        trait,
        settings or {},
    )
