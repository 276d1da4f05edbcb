"""A replacement taken apart: one of its sites skipped on one token, or nothing left of it but that.

Beside `patch` on the same tokens this says where a replacement steers though the prompt does not, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from psr_lens._utils.progress import progress_bar
from psr_lens.errors import InputError
from psr_lens.interpretation.patching.cells import TOKEN_BUDGET, Cell, Place, divergence, divergences, log_probabilities, table_of
from psr_lens.interpretation.patching.grid import Cells, PatchGrid, check_cells
from psr_lens.models import HookedModel, fingerprint, frozen, hooked
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Span, Triplet, check_triplets, token_table
from psr_lens.replacement import SPANS, Replacement, SteeringPlan

Mode = Literal["skip", "only"]
"""`skip`: the replacement acts everywhere but in the cell; `only`: nowhere but in the cell."""

Reference = Literal["replacement", "prompt"]
"""Whose effect shares are of."""


def ablate(
    model: HookedModel,
    triplets: Sequence[Triplet],
    replacement: Replacement | SteeringPlan,
    *,
    mode: Mode = "skip",
    reference: Reference = "replacement",
    cells: Cells = "token",
    alpha: float = 1.0,
    span: Span = "R",
    token_budget: int = TOKEN_BUDGET,
) -> PatchGrid:
    """Skip each of a replacement's sites on each token, or leave nothing but that, and measure what is lost or recovered.

    With `reference="prompt"` shares are of the prompt's effect. A negative loss then is a cell without which the replacement is closer to
    the prompt.

    Args:
        model: The model; left as it was.
        triplets: Prompt pairs with responses; they are read in the base context.
        replacement: A replacement, or a plan of several.
        mode: `"skip"` or `"only"`.
        reference: `"replacement"`, the effect that it has, or `"prompt"`.
        cells: `"token"`: each token of the span by itself; `"all"`: the whole span at once.
        alpha: Strength of the replacement.
        span: Which tokens are the cells. The replacement acts on its own span.
        token_budget: Most tokens of a batch of copies.

    Returns:
        The share of the effect by token and site; two sites of one layer are two columns.

    Raises:
        InputError: no triplets, an unknown mode, reference or kind of cell, or a replacement that acts outside layers.
        ArtifactError: the replacement was made for another model.
    """
    for name, value, kind in (("mode", mode, Mode), ("reference", reference, Reference)):
        if value not in get_args(kind):
            raise InputError(name, repr(value), " or ".join(map(repr, get_args(kind))))
    check_cells(cells, token_budget)
    triplets, plan = list(triplets), SteeringPlan.of(replacement)
    check_triplets(model, triplets)
    sites = {name: layer_of(name) for part in plan.parts for name in part.replacement.sites}
    if outside := [name for name, layer in sites.items() if layer is None]:
        raise InputError("replacement", f"one that acts at {outside}", "one that acts within layers")
    names = sorted(sites, key=lambda name: sites[name] or 0)
    values, effects = [], []
    bar = progress_bar(triplets, desc="ablate", unit="triplet")
    with torch.no_grad(), frozen(model):
        for triplet in bar:
            place = Place.of(triplet, "base", span)
            starts = {each: torch.tensor([Place.of(triplet, "base", each).start]) for each in SPANS}
            base = log_probabilities(model, place)
            with plan.steer(model, alpha, start=starts):
                run = log_probabilities(model, place)
            full = (run if reference == "replacement" else log_probabilities(model, Place.of(triplet, "prompted", span)))[0]
            rows: Sequence[int | None] = range(place.rows - 1) if cells == "token" else [None]
            chosen = [Cell(column, row, None) for column in range(len(names)) for row in rows]

            @contextmanager
            def patched(batch: Sequence[Cell]) -> Iterator[None]:
                arriving: dict[str, Tensor] = {}
                keep = [(name, _keep(name, arriving)) for name in names]
                undo = [(name, _undo(name, at, batch, place, mode, arriving)) for at, name in enumerate(names)]  # noqa: B023
                # Hooks of one point run in the order in which they were added.
                with hooked(model, keep), plan.steer(model, alpha, start=starts), hooked(model, undo):  # noqa: B023
                    yield

            effect = float(divergence(full, base))
            apart = divergences(model, place, chosen, patched, full, token_budget)
            gained = apart - divergence(full, run).cpu() if mode == "skip" else effect - apart
            share = gained / (effect if effect > 0 else torch.nan)
            values.append(table_of(chosen, share, place.rows if cells == "token" else 1, len(names), 1))
            effects.append(effect)
    return PatchGrid(
        triplets[0].pair.instruction,
        fingerprint(model),
        "replacement",
        "lost" if mode == "skip" else "recovered",
        reference,
        cells,
        token_table(model, triplets, span),
        tuple(sites[name] or 0 for name in names),
        torch.cat(values),
        torch.tensor(effects),
    )


def _keep(name: str, arriving: dict[str, Tensor]) -> Any:
    def hook(activation: Tensor, hook: Any) -> None:
        arriving[name] = activation.clone()

    return hook


def _undo(name: str, column: int, batch: Sequence[Cell], place: Place, mode: Mode, arriving: dict[str, Tensor]) -> Any:
    """Put back what arrived: in the cell, or everywhere else."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        before, changed = arriving.pop(name), activation.clone()
        if mode == "only":
            before, changed = changed, before
        for copy, cell in enumerate(batch):
            if cell.column == column:
                at = slice(place.start, None) if cell.row is None else place.start + cell.row
                changed[copy, at] = before[copy, at]
        return changed

    return hook
