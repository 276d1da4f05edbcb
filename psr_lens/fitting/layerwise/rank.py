"""Closed-form start of a regression, and the rank chosen from it."""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.fitting.layerwise.moments import Basis, Moments, Parts, RegressionData, Rows
from psr_lens.fitting.settings.solvers import Layerwise

SPARE, ITERATIONS = 16, 30
"""Extra vectors, and rounds, of the subspace iteration."""
MOST_RANK: Final = 32
"""Largest rank that is chosen."""
ENOUGH: Final = 0.99
"""Share that the chosen rank has to reach of what the best rank up to `MOST_RANK` explains of held-out tokens."""


def chosen_rank(rows: Rows, config: Layerwise, device: torch.device) -> int:
    """The smallest rank that explains nearly as much of held-out tokens as any up to `MOST_RANK`.

    Each half of the tokens is predicted from the other half's closed form, without its ReLU. Its directions are orthonormal, so that what
    each of them explains adds up, and all ranks are tried at once.
    """
    halves = RegressionData.halves(rows, config.regression_batch, device)
    most = min(MOST_RANK, rows[0].shape[1])
    explained = torch.zeros(most, dtype=torch.float64, device=device)
    for training, held_out in (halves, halves[::-1]):
        if not training.counts or not held_out.counts:
            return 1
        moments = Moments.of(training)
        directions, probes, mean = _linear(training, moments, config, most)
        for chunk in held_out.standard(moments):
            along = chunk.targets @ directions.T
            missed = along - chunk.alpha[:, None] * (chunk.inputs @ probes.T + mean)
            explained += chunk.weight @ (along.square() - missed.square()) * moments.size**2 * moments.weight
    total = explained.cumsum(0)
    enough = total >= ENOUGH * total.max()
    return int(enough.nonzero()[0]) + 1 if total.max() > 0 else 1


def closed_form(data: RegressionData, moments: Moments, basis: Basis, config: Layerwise, rank: int) -> Parts:
    """Leading right singular vectors of the targets, and the ridge regression of the targets along them on α·(X, 1).

    Given the directions, these are the probes that minimise the objective without its ReLU. Signs are such that the mean coefficient is
    positive.
    """
    directions, cross, mean = _crossed(data, moments, rank)
    return directions, cross @ basis.components / basis.ridged(config.ridge) @ basis.components.T, mean


def _linear(data: RegressionData, moments: Moments, config: Layerwise, rank: int) -> Parts:
    """The closed form without the inputs' principal components, which take longer than solving once."""
    directions, cross, mean = _crossed(data, moments, rank)
    ridged = moments.inputs + max(config.ridge, 1e-9) * torch.eye(len(moments.inputs), dtype=torch.float32).to(moments.inputs)
    return directions, torch.cholesky_solve(cross.T, torch.linalg.cholesky(ridged)).T, mean


def _crossed(data: RegressionData, moments: Moments, rank: int) -> Parts:
    """Directions; the inputs' covariance with the targets along each; and the mean coefficients."""
    directions = leading(moments.targets, rank).T
    mean = directions @ moments.mean
    sign = torch.where(mean < 0, -1.0, 1.0).to(mean)
    directions, mean = directions * sign[:, None], mean * sign
    cross = torch.zeros_like(directions)
    for chunk in data.standard(moments):
        along = (chunk.weight * chunk.alpha)[:, None] * (chunk.targets @ directions.T)
        cross = cross + along.T @ chunk.inputs
    return directions, cross, mean


def leading(gram: Float[Tensor, "width width"], count: int) -> Float[Tensor, "width count"]:
    """Leading eigenvectors by subspace iteration, which in a wide model is far faster than the whole decomposition."""
    generator = torch.Generator().manual_seed(0)
    columns = min(len(gram), count + SPARE)
    vectors = torch.randn(len(gram), columns, generator=generator, dtype=torch.float64).to(gram)
    for _ in range(ITERATIONS):
        vectors, _ = torch.linalg.qr(gram @ vectors)
    _, within = torch.linalg.eigh(vectors.T @ gram @ vectors)
    leading: Tensor = vectors @ within.flip(1)[:, :count]
    return leading
