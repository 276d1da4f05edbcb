"""Sampling triplets: responses to the prompts with the instruction, filtered by a judge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, overload

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted, is_whole
from psr_lens.activations.massive_activations import massive_activations
from psr_lens.generation.engine import Engine
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import HookedModel
from psr_lens.prompts import PromptPair, PromptPairs, Span, Triplet, check_pairs
from psr_lens.prompts.pairs import shown
from psr_lens.prompts.prompt_view import PromptView
from psr_lens.prompts.replaced_system import replaced_system
from psr_lens.results.judgement import SIDES, Judge, Judgement, Side, checked_judge, judged

MIN_SCORE: Final = 50.0
"""Responses whose trait or coherence score is below this, on the scale 0–100, are dropped (Heyman & Vandeputte 2026, training data)."""
_SHOWN: Final = 8
"""Number of responses that a notebook shows."""

Reason = Literal["empty", "without a score", "incoherent", "without the trait", "without the marker"]
"""Why a response was dropped; the first that applies."""


@dataclass(frozen=True)
class Dropped:
    """A response that was left out, and why."""

    question: str
    """The question, or the whole conversation, as the judge saw it."""
    response: str
    """The response as text."""
    reason: Reason
    """`"empty"`; `"without a score"`, if the judge could not give one of the scores it should give; `"incoherent"` or
    `"without the trait"`, if that score is below 50; `"without the marker"`, if `answers_after` did not find the text that ends a
    thought."""


@dataclass(frozen=True, repr=False)
class Triplets(Sequence[Triplet]):
    """The triplets that passed the judge, as a sequence, with those that did not; made by `sample_responses`.

    Example:
        >>> triplets
        Triplets(16 triplets kept, 0 dropped)
        >>> len(triplets[:4])
        4
    """

    kept: tuple[Triplet, ...]
    """The triplets that passed."""
    dropped: tuple[Dropped, ...] = ()
    """The responses that were left out, with the reasons."""
    tokenizer: Any = field(default=None, compare=False)
    """The tokenizer that gives the tokens' texts; None if the pairs had none."""

    def __len__(self) -> int:
        """Number of triplets kept."""
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> Triplet: ...
    @overload
    def __getitem__(self, index: slice) -> Triplets: ...
    def __getitem__(self, index: int | slice) -> Triplet | Triplets:
        """One triplet, or a slice of them."""
        return Triplets(self.kept[index], self.dropped, self.tokenizer) if isinstance(index, slice) else self.kept[index]

    @checks_arguments
    def show(self, index: int = 0, span: Span = "R") -> PromptView:
        """Show one triplet's prompts, each followed by the response, as coloured text with the tokens in `span` marked.

        Raises:
            InputError: there is no such triplet, or no tokenizer to give the tokens' texts.

        Example:
            >>> triplets.show(0)
            PromptView(pair 0 of 16, span R; `print` shows it)
        """
        pairs = [triplet.pair for triplet in self.kept]
        ids = self.kept[index].response_ids if is_whole(index) and -len(pairs) <= index < len(pairs) else ()
        return shown(self.tokenizer, pairs, index, span, ids)

    @checks_arguments
    def summary(self, model: HookedModel | None = None) -> str:
        """How many were kept, and how many were dropped for each reason; and whether the instruction has replaced a system message.

        Args:
            model: If given, it reads the triplets in both contexts, and the summary says at how many tokens it has a massive activation;
                `massive_activations` lists them.

        Raises:
            InputError: `model` cannot read the triplets.

        Example:
            >>> triplets.summary()
            '16 triplets kept, 0 dropped'
            >>> triplets.summary(model)
            '16 triplets kept, 0 dropped. No massive activations in ... tokens'
        """
        one_of_each = {triplet.pair.chat: triplet.pair for triplet in self.kept} if self.tokenizer is not None else {}
        notes = dict.fromkeys(replaced_system(self.tokenizer, pair) for pair in one_of_each.values())
        massive = massive_activations(model, self.kept).summary if model is not None and self.kept else ""
        return ". ".join([self._counts(), *filter(None, notes), *filter(None, [massive])])

    def _counts(self) -> str:
        counts = Counter(each.reason for each in self.dropped)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        return f"{counted(len(self.kept), 'triplet')} kept, {len(self.dropped)} dropped" + (f" ({reasons})" if reasons else "")

    def _repr_html_(self) -> str:
        rows = [(each.pair.question, each.response, each.trait, each.coherence) for each in self.kept[:_SHOWN]]
        return table(("question", "response", "trait", "coherence"), rows, f"{self.summary()}; the first of them:")

    def __repr__(self) -> str:
        """How many were kept and dropped."""
        return f"Triplets({self._counts()})"


@checks_arguments
def sample_responses(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    judge: Judge | None = None,
    *,
    sampling: SamplingConfig | None = None,
    keep_negatives: bool = False,
    engine: Engine | None = None,
) -> Triplets:
    """Sample a response to every prompt with the instruction, and keep those that the judge finds coherent and with the trait.

    Args:
        model: The model.
        pairs: Prompt pairs from `prompt_pairs`.
        judge: Scores the responses. A kind of score that it does not give is taken to be 100: a judge of coherence alone cannot drop a
            response for its trait. None keeps all of them.
        sampling: How responses are sampled; None for the defaults.
        keep_negatives: Also keep coherent responses without the trait, as negative examples for `Joint(learned_offset=True)`; other
            solvers refuse them.
        engine: What samples in place of the model, as for `generate`.

    Returns:
        The triplets, and what was dropped and why (`.summary()`).

    Raises:
        InputError: no pairs, a judge that cannot be called, or invalid settings.

    Example:
        >>> psr.sample_responses(model, pairs[:3], judge, sampling=psr.SamplingConfig(max_new_tokens=40))
        Triplets(3 triplets kept, 0 dropped)
    """
    check_pairs(pairs)
    if judge is not None:
        checked_judge(judge)
    responses = generate(model, pairs, context="prompted", sampling=sampling, engine=engine)
    return judged_triplets(pairs, responses, judge, keep_negatives=keep_negatives)


def judged_triplets(
    pairs: Sequence[PromptPair], responses: Sequence[Response], judge: Judge | None, *, keep_negatives: bool = False
) -> Triplets:
    """Join pairs and responses into triplets, and filter them by coherence and, unless negatives are kept, by the trait.

    Raises:
        InputError: a judge that does not score every response.
    """
    full = np.full(len(pairs), 100.0)
    scores = Judgement(full, full, ("",) * len(pairs), SIDES)
    if judge is not None:
        scores = judged(judge, [response.text for response in responses], [pair.asked for pair in pairs])
    return scored_triplets(pairs, responses, scores, keep_negatives=keep_negatives)


def scored_triplets(
    pairs: Sequence[PromptPair], responses: Sequence[Response], scores: Judgement, *, keep_negatives: bool = False
) -> Triplets:
    """The same with scores that are there already."""
    kept, dropped = [], []
    for index, (pair, response) in enumerate(zip(pairs, responses, strict=True)):
        found = {side: float(getattr(scores, side)[index]) for side in scores.sides}
        reason = _why_dropped(response, found, keep_negatives)
        if reason is not None:
            dropped.append(Dropped(pair.asked, response.text, reason))
        else:
            kept.append(Triplet(pair, response.ids, response.text, **found))
    return Triplets(tuple(kept), tuple(dropped), pairs.tokenizer if isinstance(pairs, PromptPairs) else None)


def _why_dropped(response: Response, scores: Mapping[Side, float], keep_negatives: bool) -> Reason | None:
    if not response.text.strip():
        return "empty"
    if not all(map(math.isfinite, scores.values())):
        return "without a score"
    if scores.get("coherence", MIN_SCORE) < MIN_SCORE:
        return "incoherent"
    return "without the trait" if scores.get("trait", MIN_SCORE) < MIN_SCORE and not keep_negatives else None
