"""Many copies of one sequence, each with another cell patched, in as few forward passes as the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.models import HookedModel, device_of, forward
from psr_lens.prompts import Context, Span, Triplet

TOKEN_BUDGET: Final = 2_048
"""Tokens of a batch: every one of them has its logits."""


class Cell(NamedTuple):
    """What is patched in one copy of a sequence."""

    column: int
    """Place of the hook point among those patched."""
    row: int | None
    """Place of the token in the span; None for all of them."""
    head: int | None
    """The head; None for the whole activation."""


class Place(NamedTuple):
    """One triplet in one context, without padding."""

    ids: tuple[int, ...]
    """Token ids."""
    start: int
    """Position of the span's first token."""

    @classmethod
    def of(cls, triplet: Triplet, context: Context, span: Span) -> Place:
        """Where a triplet's span lies."""
        prompt = triplet.pair.ids(context)
        return cls((*prompt, *triplet.response_ids), len(prompt) - triplet.pair.span_length(span))

    @property
    def rows(self) -> int:
        """Number of tokens of the span."""
        return len(self.ids) - self.start


def log_probabilities(model: HookedModel, place: Place, copies: int = 1) -> Float[Tensor, "copy row d_vocab"]:
    """Next-token distributions on the span without its last token, which predicts nothing of the response."""
    tokens = torch.tensor([place.ids] * copies, device=device_of(model))
    logits = forward(model, tokens, torch.ones_like(tokens))
    return logits[:, place.start : -1].float().log_softmax(-1)


def divergence(full: Float[Tensor, "row d_vocab"], other: Float[Tensor, "copy row d_vocab"]) -> Float[Tensor, " copy"]:
    """KL(full ‖ other) in nats, summed over the tokens of the span."""
    rows: Tensor = (full.exp() * (full - other)).sum(-1)
    return rows.double().sum(-1)


def divergences(
    model: HookedModel,
    place: Place,
    cells: Sequence[Cell],
    patched: Callable[[Sequence[Cell]], AbstractContextManager[Any]],
    full: Float[Tensor, "row d_vocab"],
    token_budget: int,
) -> Float[Tensor, " cell"]:
    """KL(full ‖ cell) of every cell; `patched` is given those of one batch, copy by copy."""
    room = max(1, token_budget // len(place.ids))
    found = []
    for at in range(0, len(cells), room):
        chosen = cells[at : at + room]
        with patched(chosen):
            found.append(divergence(full, log_probabilities(model, place, len(chosen))))
    return torch.cat(found).cpu()


def table_of(
    cells: Sequence[Cell], values: Float[Tensor, " cell"], rows: int, columns: int, heads: int
) -> Float[Tensor, "row layer head"]:
    """Values of cells as a table, NaN where there is none."""
    table = torch.full((rows, columns, heads), torch.nan)
    at = torch.tensor([(cell.row or 0, cell.column, cell.head or 0) for cell in cells])
    table[at[:, 0], at[:, 1], at[:, 2]] = values.float()
    return table
