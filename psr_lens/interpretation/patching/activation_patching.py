"""Activation patching between the two contexts: what of the prompt's effect goes through which layer, token and head.

References:
    Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv 2202.05262 (causal tracing); Heimersheim & Nanda 2024,
    "How to use and interpret activation patching", arXiv 2404.15255: into the base run is their denoising, into the prompted run noising.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.progress import progress_bar
from psr_lens.errors import InputError
from psr_lens.interpretation.patching.cells import TOKEN_BUDGET, Cell, Place, divergence, divergences, log_probabilities, table_of
from psr_lens.interpretation.patching.grid import Cells, PatchGrid, check_cells
from psr_lens.models import HookedModel, fingerprint, frozen, hooked
from psr_lens.models.hook_points import check_layers
from psr_lens.prompts import Context, Span, Triplet, check_triplets, token_table

HOOKS: Final = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
    "z": "attn.hook_z",
}
"""What can be patched. `resid_mid` cannot: a bridge would let go of the change on its way past the MLP."""


def patch(
    model: HookedModel,
    triplets: Sequence[Triplet],
    hook: str = "resid_post",
    *,
    layers: str | int | Sequence[int] = "all",
    into: Context = "base",
    cells: Cells = "token",
    span: Span = "R",
    token_budget: int = TOKEN_BUDGET,
) -> PatchGrid:
    """Put activations of one context into the other, one cell at a time, and measure how far the next-token distributions follow.

    Args:
        model: The model; left as it was.
        triplets: Prompt pairs with responses. Every cell of each costs a forward pass over the response and its prompt.
        hook: `"resid_post"`, `"resid_pre"`, `"attn_out"`, `"mlp_out"`, or `"z"`, each head by itself.
        layers: Which layers.
        into: `"base"`: prompted activations are put into the base run, and what they recover of the effect is measured; `"prompted"`: base
            activations into the prompted run, and what is lost.
        cells: `"token"`: each token of the span by itself; `"all"`: the whole span at once.
        span: Which tokens.
        token_budget: Most tokens of a batch of copies.

    Returns:
        The share of the effect by token, layer and head.

    Raises:
        InputError: no triplets, an unknown hook, context, layer or kind of cell.
    """
    if hook not in HOOKS:
        raise InputError("hook", repr(hook), f"one of {', '.join(HOOKS)}")
    if into not in get_args(Context):
        raise InputError("into", repr(into), "'base' or 'prompted'")
    check_cells(cells, token_budget)
    triplets, wanted = list(triplets), check_layers(model, layers)
    check_triplets(model, triplets)
    names = [f"blocks.{layer}.{HOOKS[hook]}" for layer in wanted]
    heads = range(int(model.cfg.n_heads)) if hook == "z" else [None]
    source: Context = "prompted" if into == "base" else "base"
    values, effects = [], []
    bar = progress_bar(triplets, desc="patch", unit="triplet")
    with torch.no_grad(), frozen(model):
        for triplet in bar:
            there, here = Place.of(triplet, source, span), Place.of(triplet, into, span)
            given, other = _read(model, names, there)
            own = log_probabilities(model, here)
            full, base = (other[0], own) if into == "base" else (own[0], other)
            rows: Sequence[int | None] = range(here.rows - 1) if cells == "token" else [None]
            chosen = [Cell(column, row, head) for column in range(len(names)) for row in rows for head in heads]

            def patched(batch: Sequence[Cell]) -> AbstractContextManager[Any]:
                return hooked(model, _hooks(names, batch, here, given))  # noqa: B023 (used within the turn)

            effect = float(divergence(full, base))
            apart = divergences(model, here, chosen, patched, full, token_budget) / (effect if effect > 0 else torch.nan)
            share = 1 - apart if into == "base" else apart
            values.append(table_of(chosen, share, here.rows if cells == "token" else 1, len(names), len(heads)))
            effects.append(effect)
    return PatchGrid(
        triplets[0].pair.instruction,
        fingerprint(model),
        hook,
        "recovered" if into == "base" else "lost",
        "prompt",
        cells,
        token_table(model, triplets, span),
        tuple(wanted),
        torch.cat(values),
        torch.tensor(effects),
    )


def _read(model: HookedModel, names: Sequence[str], place: Place) -> tuple[list[Tensor], Float[Tensor, "copy row d_vocab"]]:
    """Activations on the span at some hook points, `[row, …]`, and the next-token distributions."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            found[name] = activation[0, place.start :].clone()

        return hook

    with hooked(model, [(name, keep(name)) for name in names]):
        distributions = log_probabilities(model, place)
    return [found[name] for name in names], distributions


def _hooks(names: Sequence[str], batch: Sequence[Cell], place: Place, given: Sequence[Tensor]) -> list[tuple[str, Any]]:
    def replace(column: int) -> Any:
        def hook(activation: Tensor, hook: Any) -> Tensor:
            changed = activation.clone()
            for copy, cell in enumerate(batch):
                if cell.column == column:
                    rows = slice(None) if cell.row is None else slice(cell.row, cell.row + 1)
                    at = (slice(None), cell.head) if cell.head is not None else (slice(None),)
                    changed[copy, place.start :][rows][at] = given[column][rows][at]
            return changed

        return hook

    return [(names[column], replace(column)) for column in sorted({cell.column for cell in batch})]
