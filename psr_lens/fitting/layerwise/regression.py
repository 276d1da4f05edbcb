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

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.errors import FitError
from psr_lens.fitting.settings.solvers import Layerwise
from psr_lens.replacement import Site

LEAST_RIDGE = 1e-3
"""Least ridge of the white coordinates; it conditions the descent and is not part of the objective."""
HISTORY = 20
"""Steps that L-BFGS remembers."""
LEAST_DIAGONAL = 1e-10
"""Added to the diagonal, scaled to 1, of the system for the directions, so that two equal probes do not get huge ones."""
SPARE, ITERATIONS = 16, 30
"""Extra vectors, and rounds, of the subspace iteration."""


def fit_site(
    inputs: Float[Tensor, "token *head width"],
    targets: Float[Tensor, "token *head width"],
    alpha: Float[Tensor, " token"],
    config: Layerwise,
    device: torch.device | None = None,
) -> Site:
    """Fit a site's probes and directions to the differences that it should add.

    It minimises `Σ_t k_t·|α_t·λ(X_t)·Z − T_t|² / Σ_t k_t·α_t²` plus the ridge, which is in units of the inputs' variance with the weights
    `k_t·α_t²`; `k_t` is `|X_t + T_t|` to the power of minus `relative` at `resid_post`, and 1 elsewhere.

    Args:
        inputs: Incoming activations of the site, on any device. With a head axis (`attn.hook_z`) each head is fitted by itself.
        targets: What should be added to them, in the same shape.
        alpha: Strength at which each token's target was observed (the trait score).
        config: Rank, ridge, steps and the size of a chunk.
        device: Device to compute on; by default that of the inputs.

    Returns:
        The site, on the CPU in float32.

    Raises:
        FitError: inputs or targets are not finite, or every strength is 0.
    """
    if inputs.ndim == 3:
        heads = [fit_site(inputs[:, head], targets[:, head], alpha, config, device) for head in range(inputs.shape[1])]
        parts = [torch.stack([getattr(site, part) for site in heads]) for part in ("directions", "weights", "bias")]
        return Site(parts[0], parts[1], parts[2], "relu")
    data = _Data(inputs, targets, alpha, config, inputs.device if device is None else device)
    moments = Moments.of(data)
    basis = Basis.of(moments)
    directions, weights, bias = _descend(data, moments, basis, closed_form(data, moments, basis, config), config)
    weights = weights / moments.spread
    bias = bias - weights @ moments.centre
    return Site((directions * moments.size).float().cpu(), weights.float().cpu(), bias.float().cpu(), "relu")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some tokens, on the device, in float64: in float32, rounding ends the line search early, at a point that depends on the chunks."""

    inputs: Float[Tensor, "row width"]
    """Incoming activations, raw or in standard units."""
    targets: Float[Tensor, "row width"]
    """What should be added, in the same units."""
    alpha: Float[Tensor, " row"]
    """Strengths."""
    weight: Float[Tensor, " row"]
    """Weight of each token's squared error."""
    squared: Float[Tensor, ""]
    """Σ k·|T|²."""


class _Data:
    """The tokens of a regression, read chunk by chunk."""

    def __init__(self, inputs: Tensor, targets: Tensor, alpha: Tensor, config: Layerwise, device: torch.device) -> None:
        self._parts = [each.split(config.regression_batch) for each in (inputs, targets, alpha)]
        self._relative = config.relative
        self._device = device
        self._kept: list[Chunk] = []

    def raw(self) -> Iterator[Chunk]:
        for parts in zip(*self._parts, strict=True):
            inputs, targets, alpha = (part.to(self._device, torch.float64) for part in parts)
            if not bool(torch.isfinite(inputs).all() and torch.isfinite(targets).all()):
                raise FitError("the activations are not all finite. Load the model in float32 or bfloat16.")
            weight = (inputs + targets).norm(dim=1).clamp(min=1e-12) ** -self._relative
            yield Chunk(inputs, targets, alpha, weight, (weight * targets.square().sum(1)).sum())

    def standard(self, moments: Moments) -> Iterator[Chunk]:
        """The tokens in standard units; if there is a single chunk, it is kept."""
        if self._kept:
            yield from self._kept
            return
        for raw in self.raw():
            inputs = (raw.inputs - moments.centre) / moments.spread
            squared = raw.squared / (moments.size**2 * moments.weight)
            chunk = Chunk(inputs, raw.targets / moments.size, raw.alpha, raw.weight / moments.weight, squared)
            if len(self._parts[0]) == 1:
                self._kept.append(chunk)
            yield chunk


@dataclass(frozen=True, eq=False)
class Moments:
    """What the closed form needs of the data, in float64: means with the weights k·α²; the matrices are in standard units."""

    centre: Float[Tensor, " width"]
    """Mean input."""
    spread: float
    """Root mean square of the inputs' deviations from it."""
    size: float
    """Root mean square of the targets."""
    weight: float
    """Σ k·α², by which the tokens' weights are divided."""
    inputs: Float[Tensor, "width width"]
    """XᵀX."""
    targets: Float[Tensor, "width width"]
    """TᵀT."""
    mean: Float[Tensor, " width"]
    """The constant that is best added at strength 1, Σ k·α·T / Σ k·α²."""

    @classmethod
    def of(cls, data: _Data) -> Moments:
        """Compute them in two passes over the data: the mean comes first, for precision.

        Raises:
            FitError: every strength is 0.
        """
        weight = total = torch.zeros((), dtype=torch.float32)
        for chunk in data.raw():
            counted = chunk.weight * chunk.alpha.square()
            weight, total = weight + counted.sum(), total + counted @ chunk.inputs
        if not weight > 0:
            raise FitError("every triplet has a strength (trait / 100) of 0. Give triplets with the trait.")
        centre = total / weight
        sums: list[Tensor] = []
        for chunk in data.raw():
            inputs, targets, share = chunk.inputs - centre, chunk.targets, chunk.weight * chunk.alpha / weight
            counted = (share * chunk.alpha)[:, None]
            terms = [inputs.T @ (counted * inputs), targets.T @ (counted * targets), share @ targets]
            sums = [old + new for old, new in zip(sums, terms, strict=True)] if sums else terms
        width = len(centre)
        spread = max(float(sums[0].trace() / width) ** 0.5, 1e-12)
        size = max(float(sums[1].trace() / width) ** 0.5, 1e-12)
        return cls(centre, spread, size, float(weight), sums[0] / spread**2, sums[1] / size**2, sums[2] / size)


@dataclass(frozen=True, eq=False)
class Basis:
    """The principal components of the inputs, in which the regression is diagonal."""

    components: Float[Tensor, "width component"]
    """Orthonormal columns."""
    variance: Float[Tensor, " component"]
    """Variance of the inputs along each; the mean is 1."""

    @classmethod
    def of(cls, moments: Moments) -> Basis:
        """Decompose the covariance."""
        variance, components = torch.linalg.eigh(moments.inputs)
        return cls(components, variance.clamp(min=0))

    def ridged(self, ridge: float) -> Float[Tensor, " component"]:
        """Variance plus ridge."""
        # At least 1e-9, or fewer tokens than dimensions would make the system singular.
        return self.variance + max(ridge, 1e-9)


Parts = tuple[Float[Tensor, "rank width"], Float[Tensor, "rank width"], Float[Tensor, " rank"]]
"""Directions, probes and offsets, in standard units."""


def closed_form(data: _Data, moments: Moments, basis: Basis, config: Layerwise) -> Parts:
    """Leading right singular vectors of the targets, and the ridge regression of the targets along them on α·(X, 1).

    Given the directions, these are the probes that minimise the objective without its ReLU. Signs are such that the mean coefficient is
    positive.
    """
    directions = _leading(moments.targets, config.rank).T
    mean = directions @ moments.mean
    sign = torch.where(mean < 0, -1.0, 1.0).to(mean)
    directions, mean = directions * sign[:, None], mean * sign
    cross = torch.zeros_like(directions)
    for chunk in data.standard(moments):
        along = (chunk.weight * chunk.alpha)[:, None] * (chunk.targets @ directions.T)
        cross = cross + along.T @ chunk.inputs
    return directions, cross @ basis.components / basis.ridged(config.ridge) @ basis.components.T, mean


def _leading(gram: Float[Tensor, "width width"], count: int) -> Float[Tensor, "width count"]:
    """Leading eigenvectors by subspace iteration, which in a wide model is far faster than the whole decomposition."""
    generator = torch.Generator().manual_seed(0)
    columns = min(len(gram), count + SPARE)
    vectors = torch.randn(len(gram), columns, generator=generator, dtype=torch.float64).to(gram)
    for _ in range(ITERATIONS):
        vectors, _ = torch.linalg.qr(gram @ vectors)
    _, within = torch.linalg.eigh(vectors.T @ gram @ vectors)
    leading: Tensor = vectors @ within.flip(1)[:, :count]
    return leading


def _descend(data: _Data, moments: Moments, basis: Basis, start: Parts, config: Layerwise) -> Parts:
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


def _reduced(data: _Data, moments: Moments, weights: Tensor, bias: Tensor, penalty: Float[Tensor, " rank"]) -> _Reduced:
    """Solve for the directions and compute the gradients by hand, since both share the costly parts."""
    rank = len(bias)
    squared, overlap, found = bias.new_zeros(()), bias.new_zeros(rank, rank), torch.zeros_like(weights)
    reads: list[Tensor] = []
    for chunk in data.standard(moments):
        reads.append(chunk.inputs @ weights.T + bias)
        coefficients = chunk.alpha[:, None] * reads[-1].relu()
        weighted = chunk.weight[:, None] * coefficients
        squared, overlap, found = squared + chunk.squared, overlap + weighted.T @ coefficients, found + weighted.T @ chunk.targets
    system = overlap + penalty.diag()
    unit = system.diagonal().sqrt().clamp(min=1e-150)  # 0 for a probe that never fires, as `found` is
    scaled = system / unit / unit[:, None] + LEAST_DIAGONAL * torch.eye(rank, dtype=torch.float32).to(system)
    directions = torch.linalg.solve(scaled, found / unit[:, None]) / unit[:, None]
    to_weights, to_bias, gram = torch.zeros_like(weights), torch.zeros_like(bias), directions @ directions.T
    for chunk, read in zip(data.standard(moments), reads, strict=True):
        missing = chunk.alpha[:, None] * read.relu() @ gram - chunk.targets @ directions.T
        at_read = (2 * chunk.weight * chunk.alpha)[:, None] * missing * (read > 0)
        to_weights, to_bias = to_weights + at_read.T @ chunk.inputs, to_bias + at_read.sum(0)
    return _Reduced(squared - (found * directions).sum(), directions, to_weights, to_bias)
