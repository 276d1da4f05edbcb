"""What the sequential and the local solver share: one pass over each context, in lockstep, and a regression at every layer.

All passes halt at a layer, in both contexts. The base activations there are the inputs of that layer's regression, and the differences to
the prompted ones are its targets. Then the passes continue, and only the site is kept. So only one layer's activations are held at a time,
and no gradient goes through the model. (Neither solver is in the paper, whose own is `joint`.)

Where even one layer's activations are larger than memory, they are kept in files instead (`scratch`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from psr_lens._utils.progress import progress_bar
from psr_lens.fitting.layerwise.data import (
    Downstream,
    LayerwiseData,
    RemainingError,
    fitted_site,
    halts,
    last_layer,
    steered_rows,
    with_rows,
)
from psr_lens.fitting.layerwise.larger_than_memory import fit_from_files
from psr_lens.fitting.layerwise.lockstep import lockstep
from psr_lens.fitting.settings.solvers import Layerwise
from psr_lens.models import HookedModel, frozen
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site


def fit_layerwise(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: Layerwise,
    downstream: Downstream,
    *,
    scratch: Path | None = None,
    probes: Mapping[str, Site] | None = None,
) -> dict[str, Site]:
    """Fit the sites `names` one after the other, in the model's order.

    Args:
        model: The model.
        triplets: What to learn from.
        names: Hook points to act at.
        config: The settings.
        downstream: What the base pass continues with after a layer.
        scratch: Folder for the activations, where they are larger than memory.
        probes: Sites whose probes are kept, by hook point, so that only directions are fitted; None to fit both.

    Returns:
        A site for each hook point.

    Raises:
        InputError: files cannot be written to `scratch`.
        FitError: an activation or a site is not finite; names the hook point.
    """
    data, kept = LayerwiseData.of(model, triplets, config), probes or {}
    bar = progress_bar(total=len(names), desc=f"fit {config.solver}", unit="layer")
    with bar, frozen(model):
        if scratch is not None:
            return fit_from_files(model, data, names, config, downstream, scratch, bar, kept)
        return _fit_in_lockstep(model, data, names, config, downstream, bar, kept)


def _fit_in_lockstep(
    model: HookedModel,
    data: LayerwiseData,
    names: Sequence[str],
    config: Layerwise,
    downstream: Downstream,
    bar: tqdm[None],
    probes: Mapping[str, Site],
) -> dict[str, Site]:
    base, prompted = data.base, data.prompted
    sites: dict[str, Site] = {}

    def visit(name: str, arrived: list[Tensor]) -> list[Tensor]:
        in_base, in_prompted = arrived[: len(base)], arrived[len(base) :]
        if name in names:
            here = in_base[0].device  # of the layer, where its site is fitted too
            store = here if data.tokens <= config.regression_batch else torch.device("cpu")
            inputs = torch.cat([batch.rows_of(each).to(store) for each, batch in zip(in_base, base, strict=True)])
            targets = torch.cat([batch.rows_of(each).to(store) for each, batch in zip(in_prompted, prompted, strict=True)])
            targets = targets.float() - inputs.float()
            alphas, weights = (torch.cat(each).to(store) for each in (data.alpha, data.weights))
            sites[name] = fitted_site(name, inputs, targets, alphas, weights, config, here, probes.get(name))
        remaining, changed = RemainingError(), []
        for ours, batch, theirs, other, alpha in zip(in_base, base, in_prompted, prompted, data.alpha, strict=True):
            rows, wanted = batch.rows_of(ours), other.rows_of(theirs)
            moved = wanted
            if name in names:
                moved = steered_rows(rows, sites[name], alpha)
                remaining.add(rows, moved, wanted)
            if downstream == "prompted":
                moved = wanted if name.endswith("hook_resid_post") else rows
            changed.append(with_rows(ours, batch, moved))
        if name in names:
            bar.set_postfix(hook=name, error=remaining, refresh=False)
            bar.update()
        return changed + in_prompted

    lockstep(model, [*base, *prompted], halts(names, downstream), last_layer(names) + 1, visit)
    return sites
