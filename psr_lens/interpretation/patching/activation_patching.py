"""Activation patching between the two contexts: through which layer, token and head the prompt's effect goes.

References:
    Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262 (causal tracing); Heimersheim & Nanda 2024,
    "How to use and interpret activation patching", arXiv 2404.15255. Patching into the base run is their denoising; patching into the
    prompted run is their noising.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.interpretation.patching.grid import Cells, PatchGrid
from psr_lens.interpretation.patching.grid_loop import Cell, ForcedSequence, GridPlan, Runs, log_probabilities, measure
from psr_lens.interpretation.patching.patchable_hooks import other_context, patchable_points
from psr_lens.models import HookedModel, hooked
from psr_lens.models.hook_points import Layers
from psr_lens.prompts import Context, Span, Triplet, check_triplets


@checks_arguments
def patch(
    model: HookedModel,
    triplets: Sequence[Triplet],
    hook: str = "resid_post",
    *,
    layers: Layers = "all",
    into: Context = "base",
    cells: Cells = "token",
    span: Span = "R",
) -> PatchGrid:
    """Patch activations of one context into the other, one cell at a time, and measure how the next-token distributions change.

    Args:
        model: The model; it is not changed.
        triplets: Prompt pairs with responses. Every cell of each triplet costs a forward pass over its prompt and response.
        hook: `"resid_post"`, `"resid_pre"`, `"attn_out"`, `"mlp_out"`, or `"z"`, which patches each head on its own.
        layers: Layers to patch.
        into: `"base"` patches prompted activations into the base run and measures the share of the effect that is recovered;
            `"prompted"` patches base activations into the prompted run and measures the share that is lost.
        cells: `"token"` patches each token of the span on its own; `"all"` patches the whole span at once.
        span: Tokens to patch: `"R"`, the last prompt token and the response, or `"QR"`, the question too.

    Returns:
        The share of the effect by token, layer and head.

    Raises:
        InputError: no triplets, an unknown hook, context or kind of cells, or a layer out of range.

    Example:
        >>> psr.patching.patch(model, triplets[:2], layers=[2, 5], cells="all")
        PatchGrid(resid_post: share of the prompt's effect recovered, 2 responses × 2 layers)
    """
    points, source = patchable_points(model, hook, layers), other_context(into)
    check_triplets(model, triplets)
    names, by_head = list(points), hook == "z"

    def runs_of(triplet: Triplet) -> Runs:
        here = ForcedSequence.of(triplet, into, span)
        given, other = _read(model, names, ForcedSequence.of(triplet, source, span))
        own = log_probabilities(model, here)[0]
        base, full = (own, other) if into == "base" else (other, own)
        return Runs(here, own, base, full, lambda batch: _patched(model, names, batch, here.start, given))

    plan = GridPlan(
        hook,
        "recovered" if into == "base" else "lost",
        "prompt",
        cells,
        span,
        tuple(points.values()),
        int(model.cfg.n_heads) if by_head else None,
    )
    return measure(model, triplets, plan, runs_of)


def _read(
    model: HookedModel, names: Sequence[str], sequence: ForcedSequence
) -> tuple[list[Float[Tensor, "token ..."]], Float[Tensor, "row d_vocab"]]:
    """Activations at some hook points on the span, and the next-token distributions."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            found[name] = activation[0, sequence.start :].clone()

        return hook

    with hooked(model, [(name, keep(name)) for name in names]):
        distributions = log_probabilities(model, sequence)[0]
    return [found[name] for name in names], distributions


def _patched(
    model: HookedModel, names: Sequence[str], batch: Sequence[Cell], start: int, given: Sequence[Tensor]
) -> AbstractContextManager[Any]:
    """Hooks that write `given` into each copy's cell."""

    def replace(column: int) -> Any:
        def hook(activation: Tensor, hook: Any) -> Tensor:
            changed = activation.clone()
            for copy, cell in enumerate(batch):
                if cell.column == column:
                    rows = slice(None) if cell.row is None else slice(cell.row, cell.row + 1)
                    at = (slice(None),) if cell.head is None else (slice(None), cell.head)
                    changed[copy, start:][rows][at] = given[column][rows][at]
            return changed

        return hook

    return hooked(model, [(names[column], replace(column)) for column in sorted({cell.column for cell in batch})])
