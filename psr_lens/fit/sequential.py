"""The sequential solver: the whole replacement within one forward pass over the base context, and one that gives the targets.

When layer `l`'s activation `Â_l` arrives, carrying what all earlier sites added, that layer's `α·ReLU(Â_l·W + b)·Z ≈ A_{l|PS} − Â_l` is
fitted there and then and applied, and the pass goes on. Each site corrects what the earlier ones missed, and is trained on the
inputs that it will see. No gradient goes through the model. (Not in the paper, whose solver is `joint`.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from psr_lens.fit.config import FitConfig
from psr_lens.fit.lockstep import lockstep
from psr_lens.fit.regression import fit_site
from psr_lens.hook_points import layer_of
from psr_lens.models import HookedModel, device_of, frozen
from psr_lens.passes import collect
from psr_lens.prompts import Triplet, context_batch, length_batches
from psr_lens.replacement import Site


def fit_sequential(
    model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: FitConfig, *, progress: bool = False
) -> dict[str, Site]:
    """Fit the sites `names` one after the other, in the model's order."""
    targets = collect(model, triplets, names, "steered", config.span, token_budget=config.token_budget, progress=progress)
    counts = [triplet.pair.span_length(config.span) + len(triplet.response_ids) for triplet in triplets]
    split = {name: rows.split(counts) for name, rows in targets.items()}
    device = device_of(model)
    groups = list(length_batches(triplets, config.token_budget))
    order = [index for group in groups for index in group]
    batches = [context_batch([triplets[index] for index in group], "base", config.span, device) for group in groups]
    per_batch = [torch.tensor([triplets[index].trait for index in group], device=device) for group in groups]
    alpha = torch.cat([torch.full((counts[index],), triplets[index].trait, device=device) for index in order])
    sites: dict[str, Site] = {}
    bar = tqdm(total=len(names), desc="fit sequential", unit="layer", disable=not progress)

    def visit(name: str, arrived: list[Tensor]) -> list[Tensor]:
        inputs = torch.cat([activation[batch.span] for activation, batch in zip(arrived, batches, strict=True)])
        wanted = torch.cat([split[name][index] for index in order]).to(device)
        sites[name] = fit_site(inputs, wanted - inputs, alpha, config)
        precise = torch.promote_types(inputs.dtype, torch.float32)
        here = sites[name].to(device, precise)
        bar.update()
        return [
            activation
            + (strength[:, None, None] * batch.span[..., None] * here.intervention(activation.to(precise))).to(activation.dtype)
            for activation, batch, strength in zip(arrived, batches, per_batch, strict=True)
        ]

    last = max(layer for name in names if (layer := layer_of(name)) is not None)
    with bar, frozen(model):
        lockstep(model, batches, names, last + 1, visit)
    return sites
