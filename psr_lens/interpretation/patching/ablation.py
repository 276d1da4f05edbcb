"""A replacement taken apart: skip one of its sites at one token, or keep only that site.

Compared with `patch` on the same tokens, this shows where a replacement steers though the prompt does not, and the reverse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError
from psr_lens.interpretation.patching.grid import Cells, PatchGrid, Reference
from psr_lens.interpretation.patching.grid_loop import Cell, ForcedSequence, GridPlan, Runs, log_probabilities, measure
from psr_lens.models import HookedModel, hooked
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Span, Triplet, check_triplets
from psr_lens.replacement import SPANS, Replacement, SteeringPlan

Mode = Literal["skip", "only"]
"""`skip`: the replacement acts everywhere except in the cell; `only`: it acts in the cell only."""


@checks_arguments
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
) -> PatchGrid:
    """Skip each site of a replacement at each token, or keep nothing but that, and measure what is lost or recovered.

    With `reference="prompt"`, shares are of the prompt's effect. A negative loss then marks a cell without which the replacement is
    closer to the prompt.

    Args:
        model: The model; it is not changed.
        triplets: Prompt pairs with responses, read in the base context.
        replacement: A replacement, or a plan of several.
        mode: `"skip"` or `"only"`.
        reference: `"replacement"`, its own effect, or `"prompt"`.
        cells: `"token"` treats each token of the span on its own; `"all"` the whole span at once.
        alpha: Strength α of the replacement.
        span: Tokens that are cells. The replacement acts on its own span.

    Returns:
        The share of the effect by token and site; two sites at one layer are two columns.

    Raises:
        InputError: no triplets, an unknown mode, reference or kind of cells, or a replacement that acts outside of layers.
        ArtifactError: the replacement was made for another model.

    Example:
        >>> psr.patching.ablate(model, triplets[:1], caa, cells="all")
        PatchGrid(replacement: share of the replacement's effect lost, 1 response × 1 layer)
    """
    for name, value, kind in (("mode", mode, Mode), ("reference", reference, Reference)):
        if value not in get_args(kind):
            raise InputError(name, repr(value), " or ".join(map(repr, get_args(kind))))
    check_triplets(model, triplets)
    if not isinstance(replacement, Replacement | SteeringPlan):
        raise InputError(
            "replacement", f"a {type(replacement).__name__}", "a Replacement or a SteeringPlan", "`psr.fit` makes one."
        )
    steering = SteeringPlan.of(replacement)
    sites = {name: layer_of(name) for part in steering.parts for name in part.replacement.sites}
    if outside := [name for name, layer in sites.items() if layer is None]:
        raise InputError("replacement", f"one that acts at {outside}", "one that acts within layers")
    names = sorted(sites, key=lambda name: sites[name] or 0)

    def runs_of(triplet: Triplet) -> Runs:
        here = ForcedSequence.of(triplet, "base", span)
        starts = {each: torch.tensor([ForcedSequence.of(triplet, "base", each).start]) for each in SPANS}
        base = log_probabilities(model, here)[0]
        with steering.steer(model, alpha, start=starts):
            run = log_probabilities(model, here)[0]
        full = run if reference == "replacement" else log_probabilities(model, ForcedSequence.of(triplet, "prompted", span))[0]

        @contextmanager
        def patched(batch: Sequence[Cell]) -> Iterator[None]:
            arriving: dict[str, Tensor] = {}
            keep = [(name, _keep(name, arriving)) for name in names]
            undo = [
                (name, _undo(arriving, name, [cell if cell.column == column else None for cell in batch], here.start, mode))
                for column, name in enumerate(names)
            ]
            # Hooks of one point run in the order in which they were added.
            with hooked(model, keep), steering.steer(model, alpha, start=starts), hooked(model, undo):
                yield

        return Runs(here, run, base, full, patched)

    layers = tuple(sites[name] or 0 for name in names)
    plan = GridPlan("replacement", "lost" if mode == "skip" else "recovered", reference, cells, span, layers)
    return measure(model, triplets, plan, runs_of)


def _keep(name: str, arriving: dict[str, Tensor]) -> Any:
    def hook(activation: Tensor, hook: Any) -> None:
        arriving[name] = activation.clone()

    return hook


def _undo(arriving: dict[str, Tensor], name: str, cells: Sequence[Cell | None], start: int, mode: Mode) -> Any:
    """Restore what arrived: in each copy's cell with `skip`, everywhere else with `only`. None is a copy whose cell is at another point."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        before, changed = arriving.pop(name), activation.clone()
        if mode == "only":
            before, changed = changed, before
        for copy, cell in enumerate(cells):
            if cell is not None:
                at = slice(start, None) if cell.row is None else start + cell.row
                changed[copy, at] = before[copy, at]
        return changed

    return hook
