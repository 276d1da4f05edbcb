"""The loop behind `patch` and `ablate`: copies of one sequence, each with another cell patched, batched within a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.progress import progress_bar
from psr_lens.activations.finite import check_logits
from psr_lens.activations.teacher_forced_pass import logits_budget
from psr_lens.errors import InputError
from psr_lens.interpretation.patching.grid import Cells, Measured, PatchGrid, Reference
from psr_lens.models import HookedModel, device_of, fingerprint, forward, frozen
from psr_lens.prompts import Context, Span, Triplet, instruction_label, token_table

TOKEN_BUDGET: Final = 2_048
"""Tokens per batch of copies; fewer for a large vocabulary, since every token has its logits."""

_READINGS: Final = 3
"""Tensors of the size of the logits that are held at once."""


class Cell(NamedTuple):
    """What is patched in one copy of a sequence."""

    column: int
    """Index of the hook point among those patched."""
    row: int | None
    """Index of the token in the span; None for all tokens."""
    head: int | None
    """The head; None for the whole activation."""


class ForcedSequence(NamedTuple):
    """The tokens of one triplet in one context, without padding."""

    ids: tuple[int, ...]
    """Token ids of the prompt and the response."""
    start: int
    """Position of the span's first token."""

    @classmethod
    def of(cls, triplet: Triplet, context: Context, span: Span) -> ForcedSequence:
        """The sequence of a triplet in a context."""
        prompt = triplet.pair.ids(context)
        return cls((*prompt, *triplet.response_ids), len(prompt) - triplet.pair.span_length(span))

    @property
    def rows(self) -> int:
        """Number of tokens of the span."""
        return len(self.ids) - self.start


@dataclass(frozen=True, eq=False)
class Runs:
    """The unpatched runs of one triplet, as next-token distributions, and how to patch cells into one of them."""

    sequence: ForcedSequence
    """The sequence of the run that is patched."""
    unpatched: Float[Tensor, "row d_vocab"]
    """The run that is patched, before any patch."""
    base: Float[Tensor, "row d_vocab"]
    """The run without the effect."""
    full: Float[Tensor, "row d_vocab"]
    """The run with the whole effect."""
    patched: Callable[[Sequence[Cell]], AbstractContextManager[Any]]
    """Sets the hooks for a batch of cells, one cell per copy of the sequence."""


@dataclass(frozen=True)
class GridPlan:
    """Which cells are patched, and what is measured; fields as in `PatchGrid`."""

    what: str
    """What is patched."""
    measured: Measured
    """What the shares measure."""
    reference: Reference
    """The full run."""
    cells: Cells
    """Whether tokens are patched one by one."""
    span: Span
    """The tokens that are patched."""
    layers: tuple[int, ...]
    """The layer of each column."""
    heads: int | None = None
    """Number of heads, each patched on its own; None to patch whole activations."""

    def cells_of(self, sequence: ForcedSequence) -> list[Cell]:
        """All cells of one sequence. The last token is left out, since it predicts nothing of the response."""
        rows: Sequence[int | None] = range(sequence.rows - 1) if self.cells == "token" else [None]
        heads: Sequence[int | None] = [None] if self.heads is None else range(self.heads)
        return [Cell(column, row, head) for column in range(len(self.layers)) for row in rows for head in heads]


def measure(model: HookedModel, triplets: Sequence[Triplet], plan: GridPlan, runs_of: Callable[[Triplet], Runs]) -> PatchGrid:
    """Patch every cell of every triplet, and measure the share of the effect that it recovers or loses.

    Args:
        model: The model.
        triplets: Prompt pairs with responses.
        plan: Which cells are patched, and what is measured.
        runs_of: Makes the unpatched runs of a triplet.

    Raises:
        InputError: unknown kind of cells.
    """
    if plan.cells not in get_args(Cells):
        raise InputError("cells", repr(plan.cells), "'token' or 'all'")
    values, effects = [], []
    with torch.no_grad(), frozen(model):
        for triplet in progress_bar(triplets, desc=f"patch {plan.what}", unit="triplet"):
            runs = runs_of(triplet)
            cells = plan.cells_of(runs.sequence)
            effect, before = (float(_divergence(runs.full, run[None])) for run in (runs.base, runs.unpatched))
            after = _divergences(model, runs, cells)
            gained = effect - after if plan.measured == "recovered" else after - before
            values.append(_table(plan, runs.sequence, cells, gained / (effect if effect > 0 else torch.nan)))
            effects.append(effect)
    return PatchGrid(
        instruction_label(each.pair for each in triplets),
        fingerprint(model),
        plan.what,
        plan.measured,
        plan.reference,
        plan.cells,
        token_table(model, triplets, plan.span),
        plan.layers,
        torch.cat(values),
        torch.tensor(effects, dtype=torch.float32),
    )


def log_probabilities(model: HookedModel, sequence: ForcedSequence, copies: int = 1) -> Float[Tensor, "copy row d_vocab"]:
    """Next-token distributions at the tokens of the span, except the last, which predicts nothing of the response.

    Raises:
        ModelError: the logits are not finite.
    """
    tokens = torch.tensor([sequence.ids] * copies, device=device_of(model))
    logits = forward(model, tokens, torch.ones_like(tokens))
    read = logits[:, sequence.start : -1]
    check_logits(read)
    return read.float().log_softmax(-1)


def _divergence(full: Float[Tensor, "row d_vocab"], other: Float[Tensor, "copy row d_vocab"]) -> Float[Tensor, " copy"]:
    """KL(full ‖ other) in nats, summed over the tokens of the span."""
    rows: Tensor = (full.exp() * (full - other)).sum(-1)
    return rows.double().sum(-1)


def _divergences(model: HookedModel, runs: Runs, cells: Sequence[Cell]) -> Float[Tensor, " cell"]:
    """KL(full ‖ cell) of every cell, in nats."""
    copies = max(1, logits_budget(model, TOKEN_BUDGET, _READINGS) // len(runs.sequence.ids))
    found = []
    for at in range(0, len(cells), copies):
        batch = cells[at : at + copies]
        with runs.patched(batch):
            found.append(_divergence(runs.full, log_probabilities(model, runs.sequence, len(batch))))
    return torch.cat(found).cpu()


def _table(
    plan: GridPlan, sequence: ForcedSequence, cells: Sequence[Cell], values: Float[Tensor, " cell"]
) -> Float[Tensor, "row layer head"]:
    """Values of cells as a table, NaN where there is no cell."""
    table = torch.full(
        (sequence.rows if plan.cells == "token" else 1, len(plan.layers), plan.heads or 1), torch.nan, dtype=torch.float32
    )
    at = torch.tensor([(cell.row or 0, cell.column, cell.head or 0) for cell in cells])
    table[at[:, 0], at[:, 1], at[:, 2]] = values.float()
    return table
