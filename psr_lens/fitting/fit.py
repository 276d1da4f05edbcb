"""Learning replacements: one entry, `fit`, and one file a solver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from psr_lens.activations.store import triplets_digest
from psr_lens.errors import FitError, InputError
from psr_lens.fitting import baselines
from psr_lens.fitting.config import FitConfig
from psr_lens.fitting.joint import fit_joint, polish
from psr_lens.fitting.local import fit_local
from psr_lens.fitting.reft_r1 import fit_reft_r1
from psr_lens.fitting.sequential import fit_sequential
from psr_lens.fitting.training import Trained
from psr_lens.models import HookedModel, fingerprint
from psr_lens.models.hook_points import check_layers, select_hooks
from psr_lens.prompts import Triplet, check_triplets
from psr_lens.replacement import Replacement, Site

BASELINE_NAMES: Final = {
    "dim": "Const DiM",
    "actadd": "ActAdd",
    "last_token": "Last token",
    "stolfo": "Stolfo",
    "reft_r1": "ReFT-r1",
}
"""What the solvers of baselines are called in tables."""

_LAYERWISE: Final[dict[str, Callable[..., dict[str, Site]]]] = {"sequential": fit_sequential, "local": fit_local}
"""The solvers that fit layer by layer, without a gradient through the model."""


def fit(
    model: HookedModel,
    triplets: Sequence[Triplet],
    config: FitConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    scratch: str | Path | None = None,
) -> Replacement:
    """Learn a replacement for the instruction of `triplets`; the model's weights stay frozen and as they were.

    Args:
        model: The model.
        triplets: What `sample_responses` gave.
        config: What to learn and how; the default is A-PSR by the sequential solver.
        checkpoint: A folder for the state of gradient descent after every epoch. Called again with the same arguments, a fit that was
            interrupted goes on from there and ends with the same replacement; one that was finished is returned at once.
        scratch: A folder where the activations of `sequential` and `local` wait in files, for data larger than memory: 4 bytes times
            d_model a token and site in single precision. The result is the same; `sequential` then takes half as many forward passes
            as the model has layers, instead of two. Nothing is left there.

    Returns:
        The replacement.

    Raises:
        InputError: no triplets, an empty response or one too long, a layer out of range, a checkpoint where nothing is trained,
            a `scratch` folder where nothing is fitted layer by layer or that cannot be written to.
        ArtifactError: the checkpoint is damaged, or of another run.
        FitError: the loss is no longer finite, or has exploded; its `partial` is the last good replacement.
    """
    config = config or FitConfig()
    check_triplets(model, triplets)
    layers = check_layers(model, config.layers)
    kind = "attn.hook_z" if config.hook == "z" else f"hook_{config.hook}"
    names = select_hooks(model, [f"blocks.{layer}.{kind}" for layer in layers])

    def finished(trained: Trained) -> Replacement:
        starts = {len(triplet.pair.base_ids) - triplet.pair.question_length for triplet in triplets}
        return Replacement(
            trained.sites,
            config.span,
            _method(config, len(names)),
            fingerprint(model),
            starts.pop() if config.span == "QR" and len(starts) == 1 else None,
            _settings(config, triplets),
            offset=trained.offset,
            tokens="last" if config.solver == "last_token" else "span",
            curve=trained.curve,
            data=triplets_digest(triplets),
        )

    with torch.inference_mode(mode=False):  # what is made in inference mode can have no gradients
        try:
            return finished(_solve(model, triplets, names, config, checkpoint, None if scratch is None else Path(scratch)))
        except FitError as error:
            if isinstance(error.partial, Trained):
                error.partial = finished(error.partial)
            raise


def _solve(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: FitConfig,
    checkpoint: str | Path | None,
    scratch: Path | None,
) -> Trained:
    def layerwise(solver: str) -> dict[str, Site]:
        return _LAYERWISE[solver](model, triplets, names, config, scratch=scratch)

    begins_with = config.start if config.solver == "joint" else config.solver
    if scratch is not None and begins_with not in _LAYERWISE:
        raise InputError("scratch", scratch, f"None with solver={config.solver!r}, which holds no layer of all the data")
    if config.solver == "reft_r1":
        return fit_reft_r1(model, triplets, names, config, checkpoint=checkpoint)
    if config.solver == "joint":
        starts = None if config.start == "random" else lambda: layerwise(config.start)
        return fit_joint(model, triplets, names, config, starts=starts, checkpoint=checkpoint)
    if config.solver in _LAYERWISE and config.polish_epochs:
        first = lambda: layerwise(config.solver)  # noqa: E731 (not run where a checkpoint has its result)
        return polish(model, triplets, names, first, config, checkpoint=checkpoint)
    if checkpoint is not None:
        raise InputError("checkpoint", checkpoint, f"None with solver={config.solver!r}, which has no epochs to go on from")
    if config.solver in _LAYERWISE:
        return Trained(layerwise(config.solver), 0.0, None)
    return Trained(baselines.SOLVERS[config.solver](model, triplets, names, config), 0.0, None)


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
