"""The small regression of one site: α·ReLU(X·W + b)·Z ≈ T, on given activations.

It starts from a closed form and continues with L-BFGS. Four choices make it fast and let its result transfer to other texts:

- A token counts with α², as it does in the error: at a strength of 0 nothing is added to it, and its target says nothing about the site. So
  no target is ever divided by a strength.
- Given the probes, the best directions solve a small linear system. They are solved for at every step, and the descent is over the probes
  alone (variable projection). 30 steps reach at most the loss that 60 steps over both reach.
- The descent works in coordinates in which the inputs are white.
- The ridge is part of the objective to the end. It is `Σ_i |w_i|²·|z_i|²`, which does not change when a probe is scaled up and its
  direction down. Without it the probes use input directions that hardly vary in the data, and misfire on texts where those do vary.
  (A ridge that weighs those directions more, by the inverse root of the inputs' covariance, did worse on other kinds of question: the
  probes then rely on what varies most, and that changes with the kind of question.)

In the residual stream a token with a large activation can be given less weight (`relative`), since the next block's normalisation divides
by its norm. On the embedded models this did worse on other kinds of question: the largest differences are at the token before the response,
where the coefficient matters most.

The data is read in chunks, so that it need not fit on the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.fitting.layerwise.moments import Basis, Moments, Parts, RegressionData
from psr_lens.fitting.layerwise.rank import chosen_rank, closed_form
from psr_lens.fitting.layerwise.token_weights import row_weights
from psr_lens.fitting.settings.solvers import Layerwise
from psr_lens.replacement import Site

LEAST_RIDGE = 1e-3
"""Least ridge of the white coordinates; it conditions the descent and is not part of the objective."""
HISTORY = 20
"""Steps that L-BFGS remembers."""
LEAST_DIAGONAL = 1e-10
"""Added to the diagonal, scaled to 1, of the system for the directions, so that two equal probes do not get huge ones."""


def fit_site(
    inputs: Float[Tensor, "token *head width"],
    targets: Float[Tensor, "token *head width"],
    alpha: Float[Tensor, " token"],
    config: Layerwise,
    device: torch.device | None = None,
    token_weights: Float[Tensor, " token"] | None = None,
) -> Site:
    """Fit a site's probes and directions to the differences that it should add.

    It minimises `Σ_t k_t·|α_t·λ(X_t)·Z − T_t|² / Σ_t k_t·α_t²` plus the ridge, which is in units of the inputs' variance with the weights
    `k_t·α_t²`; `token_weights.row_weights` says what `k_t` is.

    Args:
        inputs: Incoming activations of the site, on any device. With a head axis (`attn.hook_z`) each head is fitted by itself.
        targets: What should be added to them, in the same shape.
        alpha: Strength at which each token's target was observed (the trait score).
        config: Rank, ridge, steps and the size of a chunk.
        device: Device to compute on; by default that of the inputs.
        token_weights: Weight of each token's squared error; by default 1.

    Returns:
        The site, on the CPU in float32.

    Raises:
        FitError: inputs or targets are not finite, or every strength is 0.
    """
    if inputs.ndim == 3:
        heads = [
            fit_site(inputs[:, head], targets[:, head], alpha, config, device, token_weights) for head in range(inputs.shape[1])
        ]
        return Site(*Site.stacked(heads), "relu")
    device = inputs.device if device is None else device
    given = torch.ones_like(alpha) if token_weights is None else token_weights
    rows = (inputs, targets, alpha, row_weights(inputs, targets, alpha, given, config))
    rank = chosen_rank(rows, config, device) if config.rank == "auto" else config.rank
    data = RegressionData.of(rows, config.regression_batch, device)
    moments = Moments.of(data)
    basis = Basis.of(moments)
    directions, weights, bias = _descend(data, moments, basis, closed_form(data, moments, basis, config, rank), config)
    weights = weights / moments.spread
    bias = bias - weights @ moments.centre
    return Site((directions * moments.size).float().cpu(), weights.float().cpu(), bias.float().cpu(), "relu")


def solve_directions(
    probes: Site,
    inputs: Float[Tensor, "token width"],
    targets: Float[Tensor, "token width"],
    alpha: Float[Tensor, " token"],
    config: Layerwise,
    device: torch.device | None = None,
    token_weights: Float[Tensor, " token"] | None = None,
) -> Site:
    """The directions that go with given probes: the objective of `fit_site`, at its minimum over the directions alone.

    Args:
        probes: A site of the rule `relu` whose probes and biases are kept; its directions are not read.
        inputs: As for `fit_site`, without a head axis.
        targets: As for `fit_site`.
        alpha: As for `fit_site`.
        config: Ridge and the size of a chunk; the rank is that of the probes.
        device: As for `fit_site`.
        token_weights: As for `fit_site`.

    Returns:
        The site, on the CPU in float32.

    Raises:
        FitError: inputs or targets are not finite, or every strength is 0.
    """
    device = inputs.device if device is None else device
    given = torch.ones_like(alpha) if token_weights is None else token_weights
    rows = (inputs, targets, alpha, row_weights(inputs, targets, alpha, given, config))
    data = RegressionData.of(rows, config.regression_batch, device)
    moments = Moments.of(data)
    raw, bias = (each.to(device, torch.float64) for each in (probes.weights, probes.bias))
    weights = raw * moments.spread
    reduced = _reduced(data, moments, weights, bias + raw @ moments.centre, config.ridge * weights.square().sum(1))
    directions = (reduced.directions * moments.size).float().cpu()
    return Site(directions, probes.weights.float().cpu(), probes.bias.float().cpu(), "relu")


def _descend(data: RegressionData, moments: Moments, basis: Basis, start: Parts, config: Layerwise) -> Parts:
    """L-BFGS over the probes from the closed form, on all data at every step; returns the best state."""
    scale = float(moments.targets.trace())  # about the error of doing nothing; exactly that if every strength is 1
    if config.regression_steps == 0 or scale == 0:
        return start
    # XW = (XUS⁻¹)(SUᵀW): the probes in coordinates in which the inputs are white.
    components = basis.components
    root = basis.ridged(max(config.ridge, LEAST_RIDGE)).sqrt()
    white, bias = (start[1] @ components * root).contiguous(), start[2].clone()
    optimiser = torch.optim.LBFGS(
        [white, bias],
        max_iter=config.regression_steps,
        max_eval=2 * config.regression_steps,
        history_size=HISTORY,
        tolerance_grad=1e-9,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )
    best: tuple[float, Parts] = (float("inf"), start)

    def closure() -> Tensor:
        nonlocal best
        along = white / root
        weights, wide = along @ components.T, along.square().sum(1)
        reduced = _reduced(data, moments, weights, bias, config.ridge * wide)
        ridge = 2 * config.ridge * reduced.directions.square().sum(1)[:, None] * along
        white.grad = (reduced.to_weights @ components + ridge) / root / scale
        bias.grad = reduced.to_bias / scale
        if float(reduced.loss) < best[0]:
            best = (float(reduced.loss), (reduced.directions, weights, bias.clone()))
        return reduced.loss / scale

    optimiser.step(closure)
    return best[1]


class _Reduced(NamedTuple):
    """The objective as a function of the probes alone."""

    loss: Float[Tensor, ""]
    """Σ k·|α·λ·Z − T|² + Σ_i penalty_i·|z_i|² at its minimum over Z."""
    directions: Float[Tensor, "rank width"]
    """That Z."""
    to_weights: Float[Tensor, "rank width"]
    """Gradient of the error by the probes; Z's own change drops out at the minimum."""
    to_bias: Float[Tensor, " rank"]
    """Gradient of the error by the offsets."""


def _reduced(data: RegressionData, moments: Moments, weights: Tensor, bias: Tensor, penalty: Float[Tensor, " rank"]) -> _Reduced:
    """Solve for the directions and compute the gradients by hand, since both share the costly parts."""
    rank = len(bias)
    squared, overlap, found = bias.new_zeros(()), bias.new_zeros(rank, rank), torch.zeros_like(weights)
    reads: list[Tensor] = []
    for chunk in data.standard(moments):
        reads.append(chunk.inputs @ weights.T + bias)
        coefficients = chunk.alpha[:, None] * reads[-1].relu()
        weighted = chunk.weight[:, None] * coefficients
        squared, overlap, found = squared + chunk.squared, overlap + weighted.T @ coefficients, found + weighted.T @ chunk.targets
    directions = solved(overlap + penalty.diag(), found, LEAST_DIAGONAL)
    to_weights, to_bias, gram = torch.zeros_like(weights), torch.zeros_like(bias), directions @ directions.T
    for chunk, read in zip(data.standard(moments), reads, strict=True):
        missing = chunk.alpha[:, None] * read.relu() @ gram - chunk.targets @ directions.T
        at_read = (2 * chunk.weight * chunk.alpha)[:, None] * missing * (read > 0)
        to_weights, to_bias = to_weights + at_read.T @ chunk.inputs, to_bias + at_read.sum(0)
    return _Reduced(squared - (found * directions).sum(), directions, to_weights, to_bias)


def solved(system: Float[Tensor, "rank rank"], found: Float[Tensor, "rank width"], ridge: float) -> Float[Tensor, "rank width"]:
    """Z of the normal equations `system · Z = found`, each coefficient in its own unit.

    Args:
        system: Products of the coefficients; a coefficient that is always 0 gets directions of 0.
        found: Products of the coefficients with what they are to give.
        ridge: Added to the diagonal, in units of it.
    """
    unit = system.diagonal().sqrt().clamp(min=1e-150)  # 0 for a coefficient that is always 0, as `found` is
    scaled = system / unit / unit[:, None] + ridge * torch.eye(len(system), dtype=torch.float32).to(system)
    directions: Tensor = torch.linalg.solve(scaled, found / unit[:, None]) / unit[:, None]
    return directions
