"""What a demo measures on held-out questions, whatever its model: answers, scores, comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psr_lens.apps.rendered_prompts import rendered_prompts
from psr_lens.evaluation.answers_by_method import AnswersByMethod, FurtherStrengths, judged_answers, looked_at
from psr_lens.evaluation.compare import compare
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import NONE, PROMPT, plans_for
from psr_lens.evaluation.scores import summed
from psr_lens.generation.sampled_triplets import Triplets, judged_triplets
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPairs
from psr_lens.replacement import Replacement
from psr_lens.results.judgement import Judge, judged_by_name

Say = Callable[[str], None]


@dataclass(frozen=True)
class DemoResult:
    """Results of the demo for one instruction."""

    comparison: Comparison
    """Prompt and replacements on held-out responses, with the scores."""
    replacements: Mapping[str, Replacement]
    """The fitted methods, by name."""
    further: Sequence[object]
    """Further results for the report."""
    seconds: float
    """Wall time in seconds."""


@dataclass(frozen=True)
class HeldOut:
    """Questions that nothing was fitted on, and how they are answered and judged."""

    model: HookedModel
    """The model."""
    pairs: PromptPairs
    """Their prompts."""
    judge: Judge
    """Scores the answers."""
    sampling: SamplingConfig
    """How answers are drawn."""
    paraphrase: str
    """The instruction in other words."""
    also_at: Sequence[float]
    """Further strengths at which the report shows answers."""
    trait_judge: Judge
    """Scores the trait of these answers."""

    def measure(
        self,
        methods: Mapping[str, Replacement],
        alphas: Mapping[str, float],
        settings: Mapping[str, Any],
        say: Say,
        unsteered: Sequence[Response] | None = None,
    ) -> tuple[Comparison, AnswersByMethod, Triplets]:
        """Answer with every method, score the answers, and compare token by token.

        Args:
            methods: The methods by name.
            alphas: Their strengths.
            settings: What the report says about how it was made.
            say: Called with each progress message.
            unsteered: Answers of the unsteered model, if they are known.

        Returns:
            The comparison with its scores, the answers side by side, and the triplets that were compared on.
        """
        say(f"answering {len(self.pairs)} held-out questions")
        answers: dict[str, Sequence[Response]] = {
            NONE: unsteered or generate(self.model, self.pairs, sampling=self.sampling),
            PROMPT: generate(self.model, self.pairs, context="prompted", sampling=self.sampling),
        }
        for name, method in methods.items():
            say(f"answering with {name}")
            answers[name] = generate(self.model, self.pairs, method, sampling=self.sampling, alpha=alphas[name])
        texts = {name: tuple(each.text for each in found) for name, found in answers.items()}
        asked = [pair.asked for pair in self.pairs]
        verdicts = judged_by_name(self.judge, texts, asked)
        say("comparing token by token")
        responses = judged_triplets(self.pairs, answers[PROMPT], lambda texts, questions: verdicts[PROMPT])
        if not responses:  # none has the trait; compare anyway, as the scores say it
            responses = judged_triplets(self.pairs, answers[PROMPT], None)
        comparison = compare(self.model, responses, methods, paraphrase=self.paraphrase, alpha=alphas).with_scores(
            [summed(name, verdict, alphas.get(name)) for name, verdict in verdicts.items()],
            {**settings, "paraphrase": self.paraphrase, **rendered_prompts(self.model, self.pairs)},
        )
        say("answering the first questions at further strengths")
        further = FurtherStrengths(self.also_at, self.sampling, self.trait_judge)
        side_by_side = judged_answers(self.pairs, texts, dict(alphas), verdicts)
        shown = looked_at(side_by_side, self.model, self.pairs, plans_for(self.model, methods), answers, further)
        return comparison, shown, responses
