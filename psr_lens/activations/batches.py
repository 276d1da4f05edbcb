"""Batches of triplets as padded tensors: whole contexts, or spans after the prompts that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from operator import eq
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens._utils.sequences import padded
from psr_lens.prompts import Context, Span, Triplet

LEAST_SAVED: Final = 0.3
"""Responses to one prompt share its computation if that saves at least this share of the tokens."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The tokens before the spans of a batch, each distinct prompt once."""

    tokens: Int[Tensor, "prompt position"]
    """Token ids, padded on the left."""
    mask: Int[Tensor, "prompt position"]
    """1 where a token is real."""
    owner: Int[Tensor, " batch"]
    """Index of the prompt that each sequence of the batch continues."""


@dataclass(frozen=True, eq=False)
class ContextBatch:
    """Some triplets in one context, right-padded, with the span marked."""

    tokens: Int[Tensor, "batch position"]
    """Token ids, padded on the right."""
    mask: Int[Tensor, "batch position"]
    """1 where a token is real."""
    span: Bool[Tensor, "batch position"]
    """True on the tokens of the span; the n-th True of a row is the same response token in both contexts."""
    start: Int[Tensor, " batch"]
    """Position of the first token of the span."""
    prefix: Prefix | None = None
    """What the sequences continue, if they do not hold their whole context."""

    @property
    def whole_mask(self) -> Int[Tensor, "batch whole_position"]:
        """The mask of all tokens of the sequences, those of the prompts that they continue among them."""
        return self.mask if self.prefix is None else torch.cat([self.prefix.mask[self.prefix.owner], self.mask], dim=1)

    @cached_property
    def rows(self) -> Int[Tensor, " token"]:
        """Indices of the span's tokens in the flattened batch, sequence by sequence."""
        return self.span.flatten().nonzero().flatten()

    def rows_of(self, activation: Float[Tensor, "batch position *head width"]) -> Float[Tensor, "token *head width"]:
        """An activation's rows on the span, on the device of its layer."""
        return activation.flatten(0, 1).index_select(0, self.rows.to(activation.device))


def context_batch(triplets: Sequence[Triplet], context: Context, span: Span, device: torch.device | str = "cpu") -> ContextBatch:
    """Batch triplets in one context: right-padded ids, mask and span."""
    sequences = [(*triplet.pair.ids(context), *triplet.response_ids) for triplet in triplets]
    tokens, mask = padded(sequences, "right", device)
    starts = [len(triplet.pair.ids(context)) - triplet.pair.span_length(span) for triplet in triplets]
    start = torch.tensor(starts, device=device)
    behind = torch.arange(tokens.shape[1], device=device) >= start[:, None]
    return ContextBatch(tokens, mask, mask.bool() & behind, start)


def suffix_batch(triplets: Sequence[Triplet], context: Context, span: Span, device: torch.device | str = "cpu") -> ContextBatch:
    """Batch only the spans, with the tokens before them as a `prefix` that holds each distinct prompt once."""
    prefixes: dict[tuple[int, ...], int] = {}
    owners, spans = [], []
    for triplet in triplets:
        ids = triplet.pair.ids(context)
        at = len(ids) - triplet.pair.span_length(span)
        owners.append(prefixes.setdefault(ids[:at], len(prefixes)))
        spans.append((*ids[at:], *triplet.response_ids))
    prefix = Prefix(*padded(list(prefixes), "left", device), torch.tensor(owners, device=device))
    tokens, mask = padded(spans, "right", device)
    return ContextBatch(tokens, mask, mask.bool(), torch.zeros(len(triplets), dtype=torch.long, device=device), prefix)


def sharing_saves(triplets: Sequence[Triplet], span: Span, contexts: Sequence[Context]) -> bool:
    """Whether `suffix_batch` saves enough to be worth its second call.

    Each distinct prompt is computed once, up to the span, and so is what the prompts of one context begin with.
    """
    whole = computed = 0
    for context in contexts:
        prefixes: dict[tuple[int, ...], None] = {}
        for triplet in triplets:
            ids, kept = triplet.pair.ids(context), triplet.pair.span_length(span)
            if len(ids) == kept:
                return False
            whole += len(ids) + len(triplet.response_ids)
            computed += kept + len(triplet.response_ids)
            prefixes[ids[: len(ids) - kept]] = None
        # Whatever the first and the last in alphabetical order begin with, those between them begin with too.
        common = len([*takewhile(bool, map(eq, min(prefixes), max(prefixes)))])
        computed += common + sum(len(prefix) - common for prefix in prefixes)
    return computed <= (1 - LEAST_SAVED) * whole


def length_batches(triplets: Sequence[Triplet], token_budget: int, *, by_prompt: bool = False) -> Iterator[list[int]]:
    """Indices of triplets in batches of similar length whose padded size stays within a budget; at least one per batch.

    Args:
        triplets: Prompt pairs with responses.
        token_budget: Most tokens in a batch, padding included.
        by_prompt: Keep the responses to one prompt together, sorted by the longest of them.
    """
    longest = [max(len(triplet.pair.base_ids), len(triplet.pair.prompted_ids)) + len(triplet.response_ids) for triplet in triplets]
    group = [(triplet.pair.base_ids, triplet.pair.prompted_ids) if by_prompt else index for index, triplet in enumerate(triplets)]
    of_group: dict[Any, int] = {}
    first: dict[Any, int] = {}
    for index, key in enumerate(group):
        of_group[key] = max(of_group.get(key, 0), longest[index])
        first.setdefault(key, index)
    batch: list[int] = []
    widest = 0
    for index in sorted(range(len(triplets)), key=lambda i: (of_group[group[i]], first[group[i]], longest[i], i)):
        if batch and (len(batch) + 1) * max(widest, longest[index]) > token_budget:
            yield batch
            batch, widest = [], 0
        batch.append(index)
        widest = max(widest, longest[index])
    if batch:
        yield batch
