"""Directions for probes that are given, such as those of another model: by regression, layer by layer, or by the responses' likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from psr_lens.activations.paired_passes import collect
from psr_lens.fitting.gradient_descent.objective import Likelihood, Objective
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.gradient_descent.training import Trained, train
from psr_lens.fitting.layerwise.all_layers import fit_layerwise
from psr_lens.fitting.settings.solvers import Joint, Sequential
from psr_lens.models import HookedModel
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site

_LEAST: Final = 1e-12
"""Gates that never open are left as they are."""


def solve_for_directions(
    model: HookedModel, triplets: Sequence[Triplet], probes: Mapping[str, Site], config: Sequential, *, scratch: Path | None = None
) -> dict[str, Site]:
    """Fit directions one layer after the other as the sequential solver does, with the probes that are given.

    Args:
        model: The model.
        triplets: What to learn from; both contexts are read.
        probes: Sites of the rule `relu` in the model's order; their probes are kept, and their directions are not read.
        config: Ridge, weights and budgets; its rank is not used.
        scratch: Folder for the activations, where they are larger than memory.

    Raises:
        InputError: files cannot be written to `scratch`.
        FitError: an activation or a site is not finite; names the hook point.
    """
    return fit_layerwise(model, triplets, list(probes), config, "steered", scratch=scratch, probes=probes)


def train_directions(model: HookedModel, triplets: Sequence[Triplet], probes: Mapping[str, Site], config: Joint) -> Trained:
    """Train directions on the responses' likelihood in the base context, from 0, with the probes that are given.

    Coefficients are scaled so that a step of the learning rate changes what is added by about this share of the activation, in any model.

    Args:
        model: The model.
        triplets: What to learn from; only the base context is read.
        probes: Sites of one rank and of the rule of `config`, in the model's order; their probes are kept up to that scale.
        config: How to train; its rank is not used, and there is no regulariser, since it concerns probes alone.

    Raises:
        InputError: too few triplets to leave some out for validation.
        FitError: the loss is no longer finite, or has exploded; names layer and step.
    """
    arriving = collect(model, triplets, list(probes), "base", config.span, token_budget=config.token_budget)
    start = {name: _scaled(site, arriving[name].float()) for name, site in probes.items()}
    joint = replace(config, regulariser=0.0)

    def objective(_known: Parameters | None) -> Objective:
        parameters = Parameters.of(model, start, joint)
        for part in (parameters.weights, parameters.bias):
            part.requires_grad_(False)
        return Likelihood(model, triplets, parameters, joint)

    return train(model, triplets, list(probes), joint, objective, asked=config)


def _scaled(site: Site, rows: torch.Tensor) -> Site:
    """The site with directions of 0 and, on these rows, coefficients with the root mean square of the rows' entries."""
    sizes = site.coefficients(rows).square().mean(0).sqrt()
    factor = torch.where(sizes > _LEAST, rows.square().mean().sqrt() / sizes.clamp(min=_LEAST), 1.0)
    return Site(torch.zeros_like(site.directions), site.weights * factor[:, None], site.bias * factor, site.rule)
