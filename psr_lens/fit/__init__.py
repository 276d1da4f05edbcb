"""Learning replacements: one entry, `fit`, and one file a solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import torch

from psr_lens.fit import baselines
from psr_lens.fit.config import FitConfig
from psr_lens.fit.joint import fit_joint
from psr_lens.fit.sequential import fit_sequential
from psr_lens.hook_points import check_layers, select_hooks
from psr_lens.models import HookedModel, fingerprint
from psr_lens.prompts import Triplet, check_triplets
from psr_lens.replacement import Replacement

__all__ = ["FitConfig", "fit"]

BASELINE_NAMES: Final = {
    "dim": "Const DiM",
    "actadd": "ActAdd",
    "last_token": "Last token",
    "stolfo": "Stolfo",
    "reft_r1": "ReFT-r1",
}
"""What the solvers of baselines are called in tables."""


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
    point = "attn.hook_z" if config.hook == "z" else f"hook_{config.hook}"
    names = select_hooks(model, [f"blocks.{layer}.{point}" for layer in layers])
    solver = {"sequential": fit_sequential, "joint": fit_joint, **baselines.SOLVERS}[config.solver]
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
    """S or A for one site or several, as in the paper, and the method's name there."""
    objective = config.objective.upper() if config.solver == "joint" else "MSE"
    if config.solver in BASELINE_NAMES:
        name = BASELINE_NAMES[config.solver]
    elif config.rule == "constant":
        name = f"Const {objective}"
    else:
        name = ("PSR" if config.rule == "relu" else "gated PSR") + (" LL" if objective == "LL" else "")
    return f"{'S' if sites == 1 else 'A'}-{name}"


def _settings(config: FitConfig, triplets: Sequence[Triplet]) -> dict[str, Any]:
    instructions = sorted({triplet.pair.instruction for triplet in triplets})
    layers = config.layers if isinstance(config.layers, str | int) else list(config.layers)  # a range is no JSON
    return {**asdict(config), "layers": layers, "triplets": len(triplets), "instructions": instructions}
