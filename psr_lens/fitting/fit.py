"""Learning replacements: one entry, `fit`, and the solver of each config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from psr_lens._utils.arguments import CHECKS, checks_arguments
from psr_lens.activations.store import triplets_digest
from psr_lens.errors import FitError, InputError
from psr_lens.fitting.baselines import activation_addition, difference_in_means, last_token_difference, projection_target
from psr_lens.fitting.clas import fit_clas
from psr_lens.fitting.gradient_descent.training import Trained
from psr_lens.fitting.joint import fit_joint, polish
from psr_lens.fitting.local import fit_local
from psr_lens.fitting.loreft import fit_loreft
from psr_lens.fitting.negatives import check_no_negatives
from psr_lens.fitting.reft_r1 import fit_reft_r1
from psr_lens.fitting.sequential import fit_sequential
from psr_lens.fitting.settings.adapters import LoRA, Neurons
from psr_lens.fitting.settings.baselines import CLAS, ActAdd, DiM, LastToken, LoReFT, ReFT, Stolfo
from psr_lens.fitting.settings.solvers import FitConfig, Joint, Layerwise, Local, Sequential
from psr_lens.models import HookedModel, fingerprint
from psr_lens.models.hook_points import check_layers, select_hooks
from psr_lens.prompts import Triplet, check_triplets
from psr_lens.replacement import Replacement, Site

SOLVERS: Final[Mapping[type[FitConfig], Callable[..., Any]]] = {
    Sequential: fit_sequential,
    Local: fit_local,
    Joint: fit_joint,
    ReFT: fit_reft_r1,
    LoReFT: fit_loreft,
    CLAS: fit_clas,
    DiM: difference_in_means,
    ActAdd: activation_addition,
    LastToken: last_token_difference,
    Stolfo: projection_target,
}
"""What fits the sites of a config, given the model, the triplets, the hook names and the config. Trained ones also take a `checkpoint`,
layerwise ones a `scratch` folder."""


@checks_arguments
def fit(
    model: HookedModel,
    triplets: Sequence[Triplet],
    config: FitConfig | None = None,
    *,
    checkpoint: str | Path | None = None,
    scratch: str | Path | None = None,
) -> Replacement:
    """Learn a replacement for the instruction of `triplets`. The model's weights stay frozen and unchanged.

    Args:
        model: The model.
        triplets: What `sample_responses` gave.
        config: Solver and settings: `Sequential` (the default: A-PSR), `Local`, `Joint`, or one of the
            baselines `DiM`, `ActAdd`, `LastToken`, `Stolfo`, `ReFT`, `LoReFT` and `CLAS`.
        checkpoint: Folder for the state of gradient descent after every epoch. Called again with the same arguments, an interrupted fit
            resumes from there and ends with the same replacement; a finished one is returned at once.
        scratch: Folder where the activations of `Sequential` and `Local` are kept in files, for data larger than memory: 4 bytes times
            d_model a token and site in single precision. The result is the same. `Sequential` then makes half as many forward passes
            as the model has layers, instead of two. Nothing is left in the folder.

    Returns:
        The replacement.

    Raises:
        InputError: no triplets, an empty response or one too long, a response without the trait (below 50) and no `learned_offset`, a
            layer out of range, a `config` that is not one of these, a `checkpoint` where nothing is trained, a `scratch` folder that the
            solver does not use or that cannot be written to.
        ModelError: activations are not finite; names the hook point.
        ArtifactError: the checkpoint is damaged, or belongs to another run.
        FitError: a site is not finite; or the loss is no longer finite, or has exploded, and `partial` is the last good replacement.

    Example:
        >>> psr.fit(model, triplets, psr.DiM(layers=2)).method
        'S-Const DiM'
        >>> psr.fit(model, triplets[:4]).sites["blocks.3.hook_resid_post"].rank
        4
    """
    config = Sequential() if config is None else config
    check_used_folders(config, checkpoint, scratch)
    check_triplets(model, triplets)
    if not config.takes_negatives:
        check_no_negatives(triplets, f"psr.{config!r}")
    layers = check_layers(model, config.layers)
    kind = "attn.hook_z" if config.hook == "z" else f"hook_{config.hook}"
    names = select_hooks(model, [f"blocks.{layer}.{kind}" for layer in layers])

    def finished(trained: Trained) -> Replacement:
        for name, site in trained.sites.items():
            if not site.is_finite:
                raise FitError(f"{config.solver}: the fit at {name} is not finite. Load the model in float32 or bfloat16.")
        starts = {len(triplet.pair.base_ids) - triplet.pair.question_length for triplet in triplets}
        return Replacement(
            trained.sites,
            config.span,
            f"{'S' if len(names) == 1 else 'A'}-{config.method}",
            fingerprint(model),
            starts.pop() if config.span == "QR" and len(starts) == 1 else None,
            config.to_json() | {"triplets": len(triplets), "instructions": sorted({each.pair.instruction for each in triplets})},
            offset=trained.offset,
            tokens=config.tokens,
            curve=trained.curve,
            data=triplets_digest(triplets),
        )

    with torch.inference_mode(mode=False):  # tensors made in inference mode can have no gradients
        try:
            return finished(_solved(model, triplets, names, config, checkpoint, None if scratch is None else Path(scratch)))
        except FitError as error:
            if isinstance(error.partial, Trained):
                error.partial = finished(error.partial)
            raise


def check_used_folders(config: FitConfig, checkpoint: str | Path | None, scratch: str | Path | None) -> None:
    """Refuse folders that a solver would not use.

    Raises:
        InputError: a `checkpoint` where nothing is trained, or a `scratch` folder of a solver that holds no layer of all the data.
    """
    if checkpoint is not None and not config.is_trained:
        raise InputError("checkpoint", checkpoint, f"None with psr.{config!r}, which has no epochs to resume from")
    if scratch is not None and not isinstance(config, Layerwise):
        raise InputError("scratch", scratch, f"None with psr.{config!r}, which never holds a layer of all the data")


def _check_config(config: Any, argument: str = "config") -> None:
    if type(config) in SOLVERS:
        return
    classes = ", ".join(f"psr.{each.__name__}" for each in SOLVERS)
    got, remedy = f"a {type(config).__name__}", f"Give e.g. `psr.{Sequential(rank=2)}`."
    if isinstance(config, type) and config in SOLVERS:
        got, remedy = f"the class {config.__name__}", f"Write `psr.{config.__name__}()`."
    elif isinstance(config, LoRA | Neurons):
        remedy = "`psr.adapt` learns adapters and neurons."
    elif isinstance(config, Mapping):
        remedy = "`psr.FitConfig.of` makes it from a mapping."
    raise InputError(argument, got, f"the settings of a solver: {classes}", remedy)


CHECKS[FitConfig] = _check_config


def _solved(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: FitConfig,
    checkpoint: str | Path | None,
    scratch: Path | None,
) -> Trained:
    solve = SOLVERS[type(config)]

    def sites() -> Mapping[str, Site]:
        folder = {"scratch": scratch} if isinstance(config, Layerwise) else {}
        found: Mapping[str, Site] = solve(model, triplets, names, config, **folder)
        return found

    if isinstance(config, Layerwise) and config.polish is not None:
        return polish(model, triplets, names, sites, config, checkpoint=checkpoint)
    if config.is_trained:
        trained: Trained = solve(model, triplets, names, config, checkpoint=checkpoint)
        return trained
    return Trained(sites(), 0.0, None)
