"""The small regression of one site: ReLU(X·W + b)·Z ≈ T, on cached activations."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.errors import FitError
from psr_lens.fit.config import FitConfig
from psr_lens.replacement import Site


def fit_site(
    inputs: Float[Tensor, "token d_model"],
    targets: Float[Tensor, "token d_model"],
    alpha: Float[Tensor, "token"],
    config: FitConfig,
) -> Site:
    """Fit a site's probes and directions to the differences that it should add.

    It starts from the closed form: the directions are the leading right singular vectors of the targets, with signs such that the mean
    coefficient is positive; the probes are the ridge regression of the targets' projections on the inputs. Adam then lowers the squared
    error, full batch, and the best state is kept.

    Args:
        inputs: Activations that arrive at the site.
        targets: What should be added to them.
        alpha: Strength at which each token's target was observed (the trait judge's score).
        config: Rank, ridge, steps and learning rate.

    Raises:
        FitError: inputs or targets are not finite.
    """
    if not bool(torch.isfinite(inputs).all() and torch.isfinite(targets).all()):
        raise FitError("sequential: the activations are not all finite. Load the model in float32 or bfloat16.")
    inputs, targets, alpha = inputs.float(), targets.float(), alpha.float()
    # Work in standard units, so that one learning rate suits every model and layer.
    centre = inputs.mean(0)
    spread = (inputs - centre).square().mean().sqrt().clamp(min=1e-12)
    size = targets.square().mean().sqrt().clamp(min=1e-12)
    inputs, targets = (inputs - centre) / spread, targets / size
    start = closed_form(inputs, targets, alpha, config)
    site = _descend(start, inputs, targets, alpha, config)
    weights = site.weights / spread
    return Site((site.directions * size).cpu(), weights.cpu(), (site.bias - weights @ centre).cpu(), "relu")


def closed_form(
    inputs: Float[Tensor, "token d_model"],
    targets: Float[Tensor, "token d_model"],
    alpha: Float[Tensor, "token"],
    config: FitConfig,
) -> Site:
    """Leading singular directions of the targets, and ridge regression of the projections on centred inputs."""
    double = targets.double()
    _, vectors = torch.linalg.eigh(double.T @ double)
    directions = vectors.flip(1)[:, : config.rank].T
    projections = double @ directions.T
    sign = torch.where(projections.mean(0) < 0, -1.0, 1.0)
    directions, projections = directions * sign[:, None], projections * sign / alpha.double().clamp(min=1e-3)[:, None]
    design = inputs.double()
    gram = design.T @ design
    # Never quite 0, or fewer tokens than dimensions would leave the system singular.
    gram.diagonal().add_(max(config.ridge * float(design.square().mean()), 1e-9) * len(design))
    mean = projections.mean(0)
    weights = torch.linalg.solve(gram, design.T @ (projections - mean)).T
    return Site(directions.float(), weights.float(), mean.float(), "relu")


def _descend(
    start: Site,
    inputs: Float[Tensor, "token d_model"],
    targets: Float[Tensor, "token d_model"],
    alpha: Float[Tensor, "token"],
    config: FitConfig,
) -> Site:
    parameters = [tensor.clone().requires_grad_() for tensor in (start.directions, start.weights, start.bias)]
    site = Site(parameters[0], parameters[1], parameters[2], "relu")
    steps = config.regression_steps
    optimiser = torch.optim.Adam(parameters, lr=config.regression_learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / max(steps, 1))
    best, lowest = start, float("inf")
    with torch.enable_grad():
        for step in range(steps + 1):
            loss = (alpha[:, None] * site.intervention(inputs) - targets).square().mean()
            if loss.item() < lowest:
                lowest = loss.item()
                directions, weights, bias = (tensor.detach().clone() for tensor in parameters)
                best = Site(directions, weights, bias, "relu")
            if step == steps:
                break
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    return best
