"""The paper's solver: all probes and directions trained together, by gradient descent through the frozen model.

Heyman & Vandeputte 2026: AdamW with a linear decay to 0, on prompt steering imitation (MSE) or on the responses' likelihood (LL), with a
regulariser against probes that never fire. Imitation of the next-token distributions (KL) is this library's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from psr_lens.errors import InputError
from psr_lens.fitting.gradient_descent.objective import Divergence, Imitation, Likelihood, Objective
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.gradient_descent.training import Trained, train
from psr_lens.fitting.settings.solvers import Joint, Layerwise, as_joint
from psr_lens.models import HookedModel
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site

OBJECTIVES: Final[Mapping[str, type[Objective]]] = {"mse": Imitation, "ll": Likelihood, "kl": Divergence}


def fit_joint(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: Joint,
    *,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train the sites `names` together, from small random ones.

    Args:
        model: The model.
        triplets: What to learn from.
        names: Hook points to act at.
        config: The settings.
        checkpoint: Folder to keep the state in, and to resume from.

    Raises:
        InputError: too few triplets to leave some out for validation.
        ArtifactError: the checkpoint is damaged, or belongs to another run.
        FitError: the loss is no longer finite, or has exploded; names layer and step.
    """

    def objective(known: Parameters | None) -> Objective:
        return OBJECTIVES[config.objective](model, triplets, known or Parameters.random(model, names, config), config)

    return train(model, triplets, names, config, objective, asked=config, checkpoint=checkpoint)


def polish(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    sites: Mapping[str, Site] | Callable[[], Mapping[str, Site]],
    config: Layerwise,
    *,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train as `config.polish` says from sites that a layerwise solver gave, or from those that a function makes.

    The function is not called where a checkpoint has the parameters already.

    Raises:
        InputError: `config` has no `polish`; or as `fit_joint`.
        ArtifactError, FitError: as `fit_joint`.
    """
    if config.polish is None:
        raise InputError("config", repr(config), "settings with `polish`", "Give e.g. `polish=psr.Polish(epochs=2)`.")
    joint = as_joint(config, config.polish)

    def objective(known: Parameters | None) -> Objective:
        parameters = known or Parameters.of(model, sites() if callable(sites) else sites, joint)
        return OBJECTIVES[joint.objective](model, triplets, parameters, joint)

    return train(model, triplets, names, joint, objective, asked=config, checkpoint=checkpoint)
