"""Triplets: sampled responses to the prompted model, filtered by a judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, overload

import numpy as np

from psr_lens._utils.html_table import table
from psr_lens.errors import InputError
from psr_lens.generation.sampling import Response, SamplingConfig, generate
from psr_lens.models import (
    HookedModel,
)
from psr_lens.prompts import PromptPair, PromptPairs, Span, Triplet
from psr_lens.prompts.pairs import shown
from psr_lens.prompts.view import PromptView
from psr_lens.results.judgement import Judge, Judgement

MIN_SCORE: Final = 0.5
"""Responses below this in coherence or in the trait are dropped (Heyman & Vandeputte 2026, training data)."""


_SHOWN: Final = 8
"""Responses that a notebook is shown."""


@dataclass(frozen=True)
class Dropped:
    """A response that the judge filter left out."""

    question: str
    """The question."""
    response: str
    """The response."""
    reason: str
    """`incoherent`, `trait missing`, `empty` or `unjudged`."""


@dataclass(frozen=True)
class Triplets(Sequence[Triplet]):
    """Triplets that passed the judge filter, and those that did not; behaves as the sequence of the former."""

    kept: tuple[Triplet, ...]
    """The triplets to learn from."""
    dropped: tuple[Dropped, ...] = ()
    """What was left out, and why."""
    tokenizer: Any = field(default=None, compare=False)
    """What tells the tokens' texts; None where the pairs had none."""

    def __len__(self) -> int:
        """Number of triplets kept."""
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> Triplet: ...
    @overload
    def __getitem__(self, index: slice) -> Triplets: ...
    def __getitem__(self, index: int | slice) -> Triplet | Triplets:
        """One triplet, or a part of them."""
        return Triplets(self.kept[index], self.dropped, self.tokenizer) if isinstance(index, slice) else self.kept[index]

    def show(self, index: int = 0, span: Span = "R") -> PromptView:
        """One triplet's prompts with its response as coloured text, and the tokens that `span` takes in; see `PromptPairs.show`."""
        return shown(self.tokenizer, [each.pair for each in self.kept], index, span, self[index].response_ids)

    def summary(self) -> str:
        """How many were kept, and how many were dropped for which reason."""
        counts = Counter(each.reason for each in self.dropped)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        return f"{len(self.kept)} triplets kept, {len(self.dropped)} dropped" + (f" ({reasons})" if reasons else "")

    def _repr_html_(self) -> str:
        rows = [(each.pair.question, each.response, each.trait, each.coherence) for each in self.kept[:_SHOWN]]
        return table(("question", "response", "trait", "coherence"), rows, f"{self.summary()}; the first of them:")

    def __repr__(self) -> str:
        """The summary."""
        return f"Triplets({self.summary()})"


def sample_responses(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    judge: Judge | None = None,
    *,
    sampling: SamplingConfig | None = None,
    keep_negatives: bool = False,
) -> Triplets:
    """Sample a response to every prompted context, and keep those that the judge finds coherent and with the trait.

    Args:
        model: The model.
        pairs: Prompt pairs from `prompt_pairs`.
        judge: Scores the responses; None keeps all of them, at full score.
        sampling: How responses are drawn.
        keep_negatives: Keep coherent responses without the trait too, as negative examples: `Joint(learned_offset=True)`.

    Returns:
        The triplets, with what was dropped and why (`.summary()`).

    Raises:
        InputError: there are no pairs.
    """
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    responses = generate(model, pairs, context="prompted", sampling=sampling)
    return judged_triplets(pairs, responses, judge, keep_negatives=keep_negatives)


def judged_triplets(
    pairs: Sequence[PromptPair], responses: Sequence[Response], judge: Judge | None, *, keep_negatives: bool = False
) -> Triplets:
    """Join pairs and responses into triplets and filter them by their scores, the trait's not if negatives are to be kept."""
    full = np.full(len(pairs), 100.0)
    scores = Judgement(full, full, ("",) * len(pairs))
    if judge is not None:
        scores = judge([response.text for response in responses], [pair.asked for pair in pairs])
    kept, dropped = [], []
    for pair, response, trait, coherence in zip(pairs, responses, scores.trait / 100, scores.coherence / 100, strict=True):
        reason = _why_dropped(response, 1.0 if keep_negatives and not np.isnan(trait) else float(trait), float(coherence))
        if reason:
            dropped.append(Dropped(pair.asked, response.text, reason))
        else:
            kept.append(Triplet(pair, response.ids, response.text, float(trait), float(coherence)))
    return Triplets(tuple(kept), tuple(dropped), pairs.tokenizer if isinstance(pairs, PromptPairs) else None)


def _why_dropped(response: Response, trait: float, coherence: float) -> str:
    if not response.text.strip():
        return "empty"
    if np.isnan(trait) or np.isnan(coherence):
        return "unjudged"
    if coherence < MIN_SCORE:
        return "incoherent"
    return "trait missing" if trait < MIN_SCORE else ""
