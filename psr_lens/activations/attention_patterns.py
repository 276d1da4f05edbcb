"""Attention patterns in two contexts: which columns are the same token, and which belong to the instruction.

A pattern is `[query, key]`, and the prompted context has more keys than the base one. A response token's attention to tokens that both
prompts share is compared column by column; its attention to the instruction has no counterpart and is kept separately. A token that only
the base prompt has (such as a default system message) gets attention 0 in the prompted context. So over a row, the changes and the
attention to the instruction sum to 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.sequences import common_prefix, common_suffix
from psr_lens.errors import InputError
from psr_lens.prompts import Span, Triplet

INSTRUCTION: Final = ":instruction"
"""Suffix of the name under which the attention to the instruction is kept, beside the pattern itself."""


@dataclass(frozen=True)
class KeyAlignment:
    """Which keys in the two contexts of a triplet are the same token."""

    counterpart: tuple[int | None, ...]
    """For each token of the base context, the position of the same token in the prompted one; None if it has none."""
    instruction: tuple[int, ...]
    """Positions in the prompted context of the tokens that the base context lacks."""


def align_keys(triplet: Triplet) -> KeyAlignment:
    """Align the two contexts of a triplet by their common prefix and suffix.

    The suffix is matched first, so a token that could lie on either side of the instruction is placed after it.
    """
    base = (*triplet.pair.base_ids, *triplet.response_ids)
    prompted = (*triplet.pair.prompted_ids, *triplet.response_ids)
    end = common_suffix(base, prompted)
    start = min(common_prefix(base, prompted), len(base) - end, len(prompted) - end)
    shift = len(prompted) - len(base)
    counterpart = [at if at < start else at + shift if at >= len(base) - end else None for at in range(len(base))]
    return KeyAlignment(tuple(counterpart), tuple(range(start, len(prompted) - end)))


def check_instructions(triplets: Sequence[Triplet]) -> None:
    """Refuse prompts to which the instruction adds no token.

    Raises:
        InputError: there is such a prompt.
    """
    for index, triplet in enumerate(triplets):
        if not align_keys(triplet).instruction:
            raise InputError(f"triplets[{index}]", "the same prompt with and without the instruction", "an instruction", "Drop it.")


def key_counts(triplets: Sequence[Triplet]) -> tuple[int, int]:
    """Columns that the rows of all triplets need: for the base context, and for the instruction (at least one)."""
    alignments = [align_keys(triplet) for triplet in triplets]
    return max(len(each.counterpart) for each in alignments), max(1, *(len(each.instruction) for each in alignments))


def key_positions(
    alignments: Sequence[KeyAlignment], keys: int, instruction_keys: int
) -> tuple[Int[Tensor, "triplet key"], Int[Tensor, "triplet instruction"]]:
    """Alignments as two tensors of positions in the prompted context, `keys` and `instruction_keys` wide; -1 for none."""
    counterpart = torch.full((len(alignments), keys), -1)
    instruction = torch.full((len(alignments), instruction_keys), -1)
    for row, each in enumerate(alignments):
        counterpart[row, : len(each.counterpart)] = torch.tensor([-1 if at is None else at for at in each.counterpart])
        instruction[row, : len(each.instruction)] = torch.tensor(each.instruction, dtype=torch.long)
    return counterpart, instruction


@dataclass(frozen=True, eq=False)
class PatternColumns:
    """Positions in the prompted context of the columns of a batch's patterns; -1 for none."""

    counterpart: Int[Tensor, "token key"]
    """For each row, the position of each base token in the prompted context."""
    instruction: Int[Tensor, "token instruction"]
    """For each row, the positions of the instruction's tokens in the prompted context."""

    @classmethod
    def of(
        cls, triplets: Sequence[Triplet], span: Span, keys: int, instruction_keys: int, device: torch.device | str
    ) -> PatternColumns:
        """The columns of every row of a batch: `keys` and `instruction_keys` of them."""
        counterpart, instruction = key_positions([align_keys(triplet) for triplet in triplets], keys, instruction_keys)
        rows = torch.tensor([triplet.pair.span_length(span) + len(triplet.response_ids) for triplet in triplets])
        owner = torch.arange(len(triplets)).repeat_interleave(rows)
        return cls(counterpart[owner].to(device), instruction[owner].to(device))

    def align(
        self, base: Float[Tensor, "token head base_key"], prompted: Float[Tensor, "token head prompted_key"]
    ) -> tuple[Float[Tensor, "token head key"], Float[Tensor, "token head instruction"]]:
        """The change of the attention to each base token, and the attention to the instruction; 0 past the end of a context."""
        changed = _take(prompted, self.counterpart)
        width = min(base.shape[-1], changed.shape[-1])
        changed[..., :width] -= base[..., :width]
        return changed, _take(prompted, self.instruction)


def _take(pattern: Tensor, columns: Tensor) -> Tensor:
    index = columns[:, None].expand(-1, pattern.shape[1], -1)
    return pattern.gather(-1, index.clamp(min=0)).masked_fill_(index < 0, 0)
