"""Learning replacements: one entry, `fit`, and one file a solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from psr_lens.fit.baselines import difference_in_means
from psr_lens.fit.config import FitConfig
from psr_lens.fit.joint import fit_joint
from psr_lens.fit.local import fit_local
from psr_lens.fit.sequential import fit_sequential
from psr_lens.hook_points import check_layers, select_hooks
from psr_lens.models import HookedModel, fingerprint
from psr_lens.prompts import Triplet, check_triplets
from psr_lens.replacement import Replacement

__all__ = ["FitConfig", "fit"]


def fit(model: HookedModel, triplets: Sequence[Triplet], config: FitConfig | None = None, *, progress: bool = False) -> Replacement:
    """Learn a replacement for the instruction of `triplets`; the model's weights stay frozen and as they were.

    Args:
        model: The model.
        triplets: What `sample_responses` gave.
        config: What to learn and how; the default is A-PSR by the sequential solver.
        progress: Show a progress bar.

    Returns:
        The replacement.

    Raises:
        InputError: no triplets, an empty response or one too long, a layer out of range.
        FitError: the loss is no longer finite.
    """
    config = config or FitConfig()
    check_triplets(model, triplets)
    layers = check_layers(model, config.layers)
    names = select_hooks(model, [f"blocks.{layer}.hook_{config.hook}" for layer in layers])
    solver = {"sequential": fit_sequential, "local": fit_local, "joint": fit_joint, "dim": difference_in_means}[config.solver]
    with torch.inference_mode(mode=False):  # what is made in inference mode can have no gradients
        sites = solver(model, triplets, names, config, progress=progress)
    starts = {len(triplet.pair.base_ids) - triplet.pair.question_length for triplet in triplets}
    return Replacement(
        sites,
        config.span,
        _method(config, len(names)),
        fingerprint(model),
        starts.pop() if config.span == "QR" and len(starts) == 1 else None,
        _settings(config, triplets),
    )


def _method(config: FitConfig, sites: int) -> str:
    reach = "S" if sites == 1 else "A"
    return f"{reach}-Const DiM" if config.solver == "dim" else f"{reach}-PSR"


def _settings(config: FitConfig, triplets: Sequence[Triplet]) -> dict[str, Any]:
    instructions = sorted({triplet.pair.instruction for triplet in triplets})
    layers = config.layers if isinstance(config.layers, str | int) else list(config.layers)  # a range is no JSON
    return {**asdict(config), "layers": layers, "triplets": len(triplets), "instructions": instructions}
