"""How far a steered model is from the prompted one: next-token distributions by position, and repetition in its answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from psr_lens.activations.batches import length_batches
from psr_lens.activations.next_token import divergence
from psr_lens.activations.teacher_forced_pass import PassSteering, logits_budget, read_batch
from psr_lens.models import HookedModel
from psr_lens.prompts import Context, Triplet
from psr_lens.replacement import Replacement


class Divergence:
    """KL(prompted ‖ steered) of the next token, in nats: at the first, the second to fourth, and later response tokens."""

    def __init__(self, model: HookedModel, triplets: Sequence[Triplet]) -> None:
        self.model = model
        self.batches = [[triplets[index] for index in batch] for batch in length_batches(triplets, logits_budget(model, 2_048, 3))]
        self.prompted = [self._logits(batch, "prompted", None) for batch in self.batches]

    def _logits(self, batch: Sequence[Triplet], context: Context, steered: PassSteering | None) -> Tensor:
        found = read_batch(self.model, batch, [], context, "R", steered=steered, logits=True).logits
        if found is None:
            raise RuntimeError("the model gives no logits")
        return found

    def of(self, steering: Replacement | None, alpha: float = 1.0) -> list[float]:
        """The mean of each group."""
        steered = None if steering is None else PassSteering(steering, alpha)
        groups: list[list[float]] = [[], [], []]
        for batch, wanted in zip(self.batches, self.prompted, strict=True):
            positions = [position for triplet in batch for position in range(len(triplet.response_ids))]
            values = divergence(wanted, self._logits(batch, "base", steered)).tolist()
            for position, value in zip(positions, values, strict=True):
                groups[0 if position == 0 else 1 if position < 4 else 2].append(value)
        return [float(np.mean(group)) for group in groups]


def repeated(texts: Sequence[str]) -> float:
    """Percentage of words that end a trigram of words seen before in the same answer."""
    again = whole = 0
    for text in texts:
        words = text.split()
        trigrams = list(zip(words, words[1:], words[2:], strict=False))
        again, whole = again + len(trigrams) - len(set(trigrams)), whole + len(trigrams)
    return 100 * again / max(whole, 1)
