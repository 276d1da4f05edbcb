"""What the sequential and the local solver share: one pass over either context, in lockstep, and a regression at every layer.

All passes halt at a layer, in both contexts. What arrives there in the base context are the inputs of that layer's regression, what
arrives in the steered one gives the targets; then the passes go on, and nothing of the layer is kept but its site. So only one layer's
activations are held at a time, and no gradient goes through the model. (Neither solver is in the paper, whose own is `joint`.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from psr_lens.batches import ContextBatch, context_batch, length_batches
from psr_lens.errors import FitError
from psr_lens.fit.config import FitConfig
from psr_lens.fit.lockstep import lockstep
from psr_lens.fit.regression import fit_site
from psr_lens.hook_points import layer_of
from psr_lens.models import HookedModel, device_of, frozen
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site

CPU_TOKENS: Final = 1_024
"""Most tokens of a batch on a CPU, which gains nothing by larger ones, and loses by their padding."""

GoOn = Literal["steered by the sites", "with the prompt's"]
"""What the base context goes on with after a layer: what arrived plus what the site adds, or the prompt-steered activations."""


def fit_layerwise(
    model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: FitConfig, go_on: GoOn, *, progress: bool
) -> dict[str, Site]:
    """Fit the sites `names` one after the other, in the model's order.

    Raises:
        FitError: an activation or a site is not finite; names the hook point.
    """
    device = device_of(model)
    budget = min(config.token_budget, CPU_TOKENS) if device.type == "cpu" else config.token_budget
    groups = [[triplets[index] for index in indices] for indices in length_batches(triplets, budget)]
    base, steered = ([context_batch(group, context, config.span, device) for group in groups] for context in ("base", "steered"))
    alpha = [_per_token(batch, group) for batch, group in zip(base, groups, strict=True)]
    tokens = sum(map(len, alpha))
    sites: dict[str, Site] = {}
    bar = tqdm(total=len(names), desc=f"fit {config.solver}", unit="layer", disable=not progress)

    def visit(name: str, arrived: list[Tensor]) -> list[Tensor]:
        in_base, in_steered = arrived[: len(base)], arrived[len(base) :]
        if name in names:
            here = in_base[0].device  # that of the layer, where its site is fitted too
            store = here if tokens <= config.regression_batch else torch.device("cpu")
            inputs = torch.cat([batch.rows_of(each).to(store) for each, batch in zip(in_base, base, strict=True)])
            targets = torch.cat([batch.rows_of(each).to(store) for each, batch in zip(in_steered, steered, strict=True)])
            targets = targets.float() - inputs.float()
            sites[name] = _fitted(name, inputs, targets, torch.cat(alpha).to(store), config, here)
        left = whole = 0.0
        changed = []
        for ours, batch, theirs, other, strength in zip(in_base, base, in_steered, steered, alpha, strict=True):
            rows, wanted = batch.rows_of(ours), other.rows_of(theirs)
            moved = wanted
            if name in names:
                moved = _steered(rows, sites[name], strength)
                left += float((wanted - moved).double().square().sum())
                whole += float((wanted - rows).double().square().sum())
            if go_on == "with the prompt's":
                moved = wanted if name.endswith("hook_resid_post") else rows
            changed.append(ours.flatten(0, 1).index_copy(0, batch.rows.to(ours.device), moved.to(ours.dtype)).view_as(ours))
        if name in names:
            bar.set_postfix(hook=name, error=f"{(left / whole) ** 0.5 if whole else 0.0:.3f}", refresh=False)
            bar.update()
        return changed + in_steered

    last = max(layer for name in names if (layer := layer_of(name)) is not None)
    with bar, frozen(model):
        lockstep(model, [*base, *steered], _halts(names, last, go_on), last + 1, visit)
    return sites


def _halts(names: Sequence[str], last: int, go_on: GoOn) -> list[str]:
    """Where the passes halt: at the sites, and at every block's output that is to be replaced before the last site."""
    if go_on == "steered by the sites":
        return list(names)
    outputs = [f"blocks.{layer}.hook_resid_post" for layer in range(last)]
    # Within a block its output fires last.
    return sorted({*names, *outputs}, key=lambda name: (layer_of(name) or 0, name.endswith("hook_resid_post")))


def _fitted(name: str, inputs: Tensor, targets: Tensor, alpha: Tensor, config: FitConfig, device: torch.device) -> Site:
    try:
        site = fit_site(inputs, targets, alpha, config, device)
    except FitError as error:
        raise FitError(f"{config.solver}: at {name} {error}") from error
    if not all(bool(part.isfinite().all()) for part in (site.directions, site.weights, site.bias)):
        raise FitError(f"{config.solver}: at {name} the regression has no finite solution. Raise `ridge`.")
    return site


def _steered(
    rows: Float[Tensor, "token *head width"], site: Site, strength: Float[Tensor, "token"]
) -> Float[Tensor, "token *head width"]:
    precise = torch.promote_types(rows.dtype, torch.float32)
    added = site.to(rows.device, precise).intervention(rows.to(precise))
    return rows + (strength.to(rows.device).view(-1, *[1] * (rows.ndim - 1)) * added).to(rows.dtype)


def _per_token(batch: ContextBatch, triplets: Sequence[Triplet]) -> Float[Tensor, "token"]:
    """The trait's score of every token's triplet."""
    scores = torch.tensor([triplet.trait for triplet in triplets], device=batch.rows.device)
    return scores[batch.rows // batch.tokens.shape[1]]
