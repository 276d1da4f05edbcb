"""CLAS, contextual linear activation steering: the strength along a fixed vector is a linear function of the token's activation.

Hsu et al. 2026, "Contextual Linear Activation Steering of Language Models", arXiv 2604.24693. At each site

    h + (h · w + b) · z

with a fixed steering vector z; w and b are trained to minimise −log p(y' | x). The coefficient may be negative. Unlike the ReLU of a PSR,
it has no range in which a token is left alone.

This version differs from theirs, as far as the abstract says: z is the difference in means, w starts at 0 and b at 1 (so that it starts as
the constant), all tokens of the span are steered, and the optimiser is that of the other trained solvers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from psr_lens.fitting.baselines import difference_in_means
from psr_lens.fitting.gradient_descent.objective import Likelihood
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.gradient_descent.training import Trained, train
from psr_lens.fitting.settings.baselines import CLAS, DiM
from psr_lens.fitting.settings.solvers import as_joint
from psr_lens.models import HookedModel
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site


def fit_clas(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: CLAS,
    *,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train probes and biases along the difference in means at every site.

    Raises:
        InputError, ArtifactError, FitError: as `fit_joint`.
    """
    joint = as_joint(config, objective="ll", rule="linear", regulariser=0.0, normalise=False)

    def start() -> dict[str, Site]:
        means = difference_in_means(model, triplets, names, DiM(span=config.span, token_budget=config.token_budget))
        return {
            name: Site(site.directions * site.bias[..., None], torch.zeros_like(site.weights), torch.ones_like(site.bias), "linear")
            for name, site in means.items()
        }

    def objective(known: Parameters | None) -> Likelihood:
        parameters = known or Parameters.of(model, start(), joint)
        parameters.directions.requires_grad_(False)
        return Likelihood(model, triplets, parameters, joint)

    return train(model, triplets, names, joint, objective, asked=config, checkpoint=checkpoint)
