"""The paper's solver: all probes and directions trained together, by gradient descent through the frozen model.

Heyman & Vandeputte 2026: AdamW with a linear decay to 0, on prompt steering imitation (MSE) or on the responses' likelihood (LL), with a
regulariser against probes that never fire.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from psr_lens.fitting.config import FitConfig
from psr_lens.fitting.objective import Imitation, Likelihood, Objective
from psr_lens.fitting.parameters import Parameters
from psr_lens.fitting.training import Trained, train
from psr_lens.models import HookedModel
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site

OBJECTIVES: Final[Mapping[str, type[Objective]]] = {"mse": Imitation, "ll": Likelihood}


def fit_joint(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: FitConfig,
    *,
    starts: Callable[[], Mapping[str, Site]] | None = None,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train the sites `names` together; see `FitConfig` for the settings.

    Args:
        model: The model.
        triplets: What to learn from.
        names: Hook points to act at.
        config: What to learn and how.
        starts: Makes the sites to start from, if there is no checkpoint yet; None starts from small random ones.
        checkpoint: Folder to keep the state in, and to go on from.

    Raises:
        InputError: too few triplets to leave some out for validation.
        ArtifactError: the checkpoint is damaged, or of another run.
        FitError: the loss is no longer finite, or has exploded; names layer and step.
    """

    def objective(begun: bool) -> Objective:
        given = None if starts is None or begun else starts()
        parameters = Parameters.random(model, names, config) if given is None else Parameters.of(model, given, config)
        return OBJECTIVES[config.objective](model, triplets, parameters, config)

    return train(model, triplets, names, config, objective, checkpoint=checkpoint)


def polish(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    sites: Mapping[str, Site] | Callable[[], Mapping[str, Site]],
    config: FitConfig,
    *,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train for `config.polish_epochs` from sites that another solver gave, or from what a function gives that makes them.

    Raises:
        InputError, ArtifactError, FitError: as `fit_joint`.
    """
    starts = sites if callable(sites) else lambda: sites
    config = replace(config, epochs=config.polish_epochs)
    return fit_joint(model, triplets, names, config, starts=starts, checkpoint=checkpoint)
