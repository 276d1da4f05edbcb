"""Triplets as padded tensors: one context of some of them, or what they have behind a prefix that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens.prompts import Context, Span, Triplet


@dataclass(frozen=True)
class Prefix:
    """What comes before the spans of a batch, each prompt once."""

    tokens: Int[Tensor, "prompt position"]
    """Token ids; padding is on the left."""
    mask: Int[Tensor, "prompt position"]
    """1 where a token is real."""
    owner: Int[Tensor, " batch"]
    """Which prompt each sequence of the batch goes on from."""


@dataclass(frozen=True)
class ContextBatch:
    """Some triplets read in one context, right-padded, with the span marked."""

    tokens: Int[Tensor, "batch position"]
    """Token ids; padding is on the right."""
    mask: Int[Tensor, "batch position"]
    """1 where a token is real."""
    span: Bool[Tensor, "batch position"]
    """True on the tokens of the span; the n-th True of a row is the same response token in both contexts."""
    start: Int[Tensor, " batch"]
    """Position of the span's first token."""
    prefix: Prefix | None = None
    """What the sequences go on from, where they do not hold their whole context."""

    @cached_property
    def rows(self) -> Int[Tensor, " token"]:
        """Indices of the span's tokens in the flattened batch, sequence after sequence."""
        return self.span.flatten().nonzero().flatten()

    def rows_of(self, activation: Float[Tensor, "batch position *head width"]) -> Float[Tensor, "token *head width"]:
        """The span's rows of an activation, on the device of the layer that it comes from."""
        return activation.flatten(0, 1).index_select(0, self.rows.to(activation.device))


def context_batch(triplets: Sequence[Triplet], context: Context, span: Span, device: torch.device | str = "cpu") -> ContextBatch:
    """Put triplets in one context side by side: right-padded ids, mask and span."""
    sequences = [(*triplet.pair.ids(context), *triplet.response_ids) for triplet in triplets]
    tokens, mask = _right_padded(sequences, device)
    starts = [len(triplet.pair.ids(context)) - triplet.pair.span_length(span) for triplet in triplets]
    start = torch.tensor(starts, device=device)
    behind = torch.arange(tokens.shape[1], device=device) >= start[:, None]
    return ContextBatch(tokens, mask, mask.bool() & behind, start)


def suffix_batch(triplets: Sequence[Triplet], context: Context, span: Span, device: torch.device | str = "cpu") -> ContextBatch:
    """The same, with what comes before the spans as a `prefix` in which each prompt stands once."""
    prefixes: dict[tuple[int, ...], int] = {}
    owners, spans = [], []
    for triplet in triplets:
        ids = triplet.pair.ids(context)
        at = len(ids) - triplet.pair.span_length(span)
        owners.append(prefixes.setdefault(ids[:at], len(prefixes)))
        spans.append((*ids[at:], *triplet.response_ids))
    tokens, mask = _right_padded([each[::-1] for each in prefixes], device)
    prefix = Prefix(tokens.flip(1), mask.flip(1), torch.tensor(owners, device=device))
    tokens, mask = _right_padded(spans, device)
    return ContextBatch(tokens, mask, mask.bool(), torch.zeros(len(triplets), dtype=torch.long, device=device), prefix)


def _right_padded(sequences: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Token ids and mask."""
    tokens = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    return tokens.to(device), mask.to(device)


def length_batches(triplets: Sequence[Triplet], token_budget: int, *, by_prompt: bool = False) -> Iterator[list[int]]:
    """Indices of triplets in batches of similar length whose padded size stays within a budget (at least one a batch).

    Args:
        triplets: Prompt pairs with responses.
        token_budget: Most tokens in a batch, padding included.
        by_prompt: Keep the responses to one prompt together, and sort by the longest of them.
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
