"""Attention patterns in two contexts: which columns are the same token, and which are the instruction's own.

A pattern is `[query, key]`, and the prompted context has more keys than the base one. A response token's attention to the tokens that both
prompts have is compared column by column; its attention to the instruction has no counterpart and is kept on its own. A token that only
the base prompt has (a default system message, say) gets attention 0 in the prompted context. So over a row, the changes and the attention
to the instruction sum to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.prompts import Span, Triplet

INSTRUCTION: Final = ":instruction"
"""Ends the name under which the attention to the instruction is kept, beside the pattern's own name."""


@dataclass(frozen=True)
class KeyAlignment:
    """Which keys of the two contexts of a triplet are the same token."""

    counterpart: tuple[int | None, ...]
    """For each token of the base context, the position of the same token in the prompted one; None if it is not there."""
    instruction: tuple[int, ...]
    """Positions in the prompted context of the tokens that the base one does not have."""


def align_keys(triplet: Triplet) -> KeyAlignment:
    """Align the two contexts of a triplet by what they share at their start and at their end.

    What the prompts share at the end is taken first, so a token that could belong to either side of the instruction comes after it.
    """
    base = (*triplet.pair.base_ids, *triplet.response_ids)
    prompted = (*triplet.pair.prompted_ids, *triplet.response_ids)
    end = _shared(base[::-1], prompted[::-1])
    start = min(_shared(base, prompted), len(base) - end, len(prompted) - end)
    shift = len(prompted) - len(base)
    counterpart = [place if place < start else place + shift if place >= len(base) - end else None for place in range(len(base))]
    return KeyAlignment(tuple(counterpart), tuple(range(start, len(prompted) - end)))


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


def key_counts(triplets: Sequence[Triplet]) -> tuple[int, int]:
    """How many columns the rows of all triplets need: of the base context, and of the instruction (at least one each)."""
    alignments = [align_keys(triplet) for triplet in triplets]
    return max(len(each.counterpart) for each in alignments), max(1, *(len(each.instruction) for each in alignments))


@dataclass(frozen=True)
class PatternColumns:
    """Where the columns of a batch's patterns lie in the prompted context; -1 where there is none."""

    counterpart: Int[Tensor, "token key"]
    """For each row, the prompted position of every base token."""
    instruction: Int[Tensor, "token instruction"]
    """For each row, the prompted positions of the instruction."""

    @classmethod
    def of(
        cls, triplets: Sequence[Triplet], span: Span, keys: int, instruction_keys: int, device: torch.device | str
    ) -> PatternColumns:
        """The columns of every row of a batch, `keys` and `instruction_keys` of them."""
        counterpart = torch.full((len(triplets), keys), -1)
        instruction = torch.full((len(triplets), instruction_keys), -1)
        for row, triplet in enumerate(triplets):
            alignment = align_keys(triplet)
            places = [-1 if place is None else place for place in alignment.counterpart]
            counterpart[row, : len(places)] = torch.tensor(places)
            instruction[row, : len(alignment.instruction)] = torch.tensor(alignment.instruction, dtype=torch.long)
        rows = torch.tensor([triplet.pair.span_length(span) + len(triplet.response_ids) for triplet in triplets])
        owner = torch.arange(len(triplets)).repeat_interleave(rows)
        return cls(counterpart[owner].to(device), instruction[owner].to(device))

    def align(
        self, base: Float[Tensor, "token head base_key"], prompted: Float[Tensor, "token head prompted_key"]
    ) -> tuple[Float[Tensor, "token head key"], Float[Tensor, "token head instruction"]]:
        """The change of the attention to every base token, and the attention to the instruction; 0 past a context's end."""
        changed = _take(prompted, self.counterpart)
        width = min(base.shape[-1], changed.shape[-1])
        changed[..., :width] -= base[..., :width]
        return changed, _take(prompted, self.instruction)


def _take(pattern: Tensor, columns: Tensor) -> Tensor:
    index = columns[:, None].expand(-1, pattern.shape[1], -1)
    return pattern.gather(-1, index.clamp(min=0)).masked_fill_(index < 0, 0)
