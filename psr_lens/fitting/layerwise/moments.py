"""What the regressions of layerwise fits read: tokens chunk by chunk, their moments, and the inputs' principal components."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.errors import FitError

Rows = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs and targets, `[row, width]`, strengths and weights, `[row]`, of some tokens."""


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


class RegressionData:
    """The tokens of a regression, read chunk by chunk."""

    def __init__(self, chunks: Sequence[Rows], device: torch.device) -> None:
        self._chunks, self._device = chunks, device
        self._kept: list[Chunk] = []

    @classmethod
    def of(cls, rows: Rows, size: int, device: torch.device) -> RegressionData:
        """Tokens in chunks of some size."""
        return cls(_chunks(rows, size), device)

    @classmethod
    def halves(cls, rows: Rows, size: int, device: torch.device) -> tuple[RegressionData, RegressionData]:
        """Every other eighth of the tokens, and the rest: neighbours are of one response, and responses come by length."""
        eighths = list(zip(*(each.tensor_split(8) for each in rows), strict=True))
        first, second = ([chunk for eighth in eighths[at::2] for chunk in _chunks(eighth, size)] for at in (0, 1))
        return cls(first, device), cls(second, device)

    @property
    def counts(self) -> bool:
        """Whether there are tokens at a strength above 0."""
        return any(bool((rows[2] * rows[3]).any()) for rows in self._chunks)

    def raw(self) -> Iterator[Chunk]:
        """The tokens as they are.

        Raises:
            FitError: inputs or targets are not finite.
        """
        for rows in self._chunks:
            inputs, targets, alpha, weight = (each.to(self._device, torch.float64) for each in rows)
            if not bool(torch.isfinite(inputs).all() and torch.isfinite(targets).all()):
                raise FitError("the activations are not all finite. Load the model in float32 or bfloat16.")
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
            if len(self._chunks) == 1:
                self._kept.append(chunk)
            yield chunk


def _chunks(rows: Rows, size: int) -> list[Rows]:
    return list(zip(*(each.split(size) for each in rows), strict=True))


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
    """The best constant to add at strength 1, Σ k·α·T / Σ k·α²."""

    @classmethod
    def of(cls, data: RegressionData) -> Moments:
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
