"""LoReFT, low-rank linear subspace representation fine-tuning: within a learned subspace, the activation is replaced.

Wu et al. 2024, "ReFT: Representation Finetuning for Language Models", arXiv 2404.03592, equation 2, as in pyreft's `LoreftIntervention`:

    h + Rᵀ (W h + b − R h)

R has r orthonormal rows; R, W and b are trained to minimise −log p(y' | x). That is a site with the rule `linear`, whose directions are
the rows of R and whose probes are those of W − R.

This version differs from theirs: every token of the span is steered, not some of the prompt's first and last; training starts at W = R and
b = 0, where nothing is changed; and R is kept orthonormal by a QR decomposition after each step instead of a parametrisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.fitting.gradient_descent.objective import Likelihood
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.gradient_descent.training import Trained, train
from psr_lens.fitting.settings.baselines import LoReFT
from psr_lens.fitting.settings.solvers import Joint, as_joint
from psr_lens.models import HookedModel
from psr_lens.models.hook_points import hook_shapes
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site


def fit_loreft(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: LoReFT,
    *,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train a subspace and what replaces the activation within it, at every site.

    Raises:
        InputError: a rank above the width of the hook point; else as `fit_joint`.
        ArtifactError, FitError: as `fit_joint`.
    """
    widths = {name: hook_shapes(model, [name])[name][-1] for name in names}
    if too_narrow := [name for name, width in widths.items() if config.rank > width]:
        raise InputError("rank", config.rank, f"at most {widths[too_narrow[0]]}, the width of {too_narrow[0]}")
    joint = as_joint(config, objective="ll", rule="linear", regulariser=0.0, normalise=False)

    def objective(known: Parameters | None) -> _Loreft:  # a start that is drawn is as cheap as one that is read
        return _Loreft(model, triplets, _Subspaces.random(model, names, joint), joint)

    return train(model, triplets, names, joint, objective, asked=config, checkpoint=checkpoint)


@dataclass(frozen=True, eq=False)
class _Subspaces(Parameters):
    """R in `directions`, W in `weights`, b in `bias`."""

    def sites(self) -> dict[str, Site]:
        """The site of each hook point, whose probes are W − R."""
        return {
            name: Site(site.directions, site.weights - site.directions, site.bias, site.rule)
            for name, site in super().sites().items()
        }


class _Loreft(Likelihood):
    def __init__(self, model: HookedModel, triplets: Sequence[Triplet], parameters: Parameters, config: Joint) -> None:
        """Make R orthonormal, and W equal to it."""
        super().__init__(model, triplets, parameters, config)
        self.after_step()
        parameters.weights.detach().copy_(parameters.directions.detach())

    def after_step(self) -> None:
        """Make the rows of R orthonormal again."""
        directions = self.parameters.directions.detach()
        directions.copy_(orthonormal(directions))


def orthonormal(rows: Float[Tensor, "*site rank width"]) -> Float[Tensor, "*site rank width"]:
    """Orthonormal rows that span the same space; rows that already are, stay."""
    q, r = torch.linalg.qr(rows.mT)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(rows)
    made: Tensor = (q * signs[..., None, :]).mT
    return made
