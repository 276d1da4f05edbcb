"""Ridge regression from one model's activations to another's, from sums over tokens: the activations themselves are not kept.

The sums are kept for each fold of the texts, so that the regression on all other folds and its error on one are known without a second
pass. All is computed in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

FOLDS: Final = 4
"""Parts of the texts, each of which is predicted from the others."""
RIDGES: Final = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges that are tried, in units of the inputs' mean variance."""
_LEAST: Final = 1e-9
"""Least ridge: with fewer tokens than dimensions the system is singular without one."""


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over tokens."""

    count: float
    """Number of tokens."""
    x: Float[Tensor, " input"]
    """Σ x."""
    y: Float[Tensor, " output"]
    """Σ y."""
    xx: Float[Tensor, "input input"]
    """Σ x xᵀ."""
    xy: Float[Tensor, "input output"]
    """Σ x yᵀ."""
    yy: Float[Tensor, " output"]
    """Σ y²."""

    @classmethod
    def of(cls, x: Float[Tensor, "token input"], y: Float[Tensor, "token output"]) -> Sums:
        """The sums of some tokens."""
        x, y = x.double(), y.double()
        return cls(float(len(x)), x.sum(0), y.sum(0), x.T @ x, x.T @ y, y.square().sum(0))

    def __add__(self, other: Sums) -> Sums:
        """The sums of both."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("count", "x", "y", "xx", "xy", "yy"))
        return Sums(*(one + more for one, more in pairs))

    def __sub__(self, other: Sums) -> Sums:
        """The sums without those of the other."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("count", "x", "y", "xx", "xy", "yy"))
        return Sums(*(one - less for one, less in pairs))

    def about(self, x: Float[Tensor, " input"], y: Float[Tensor, " output"]) -> Sums:
        """The sums of the deviations from two points."""
        xx = self.xx - torch.outer(x, self.x) - torch.outer(self.x, x) + self.count * torch.outer(x, x)
        xy = self.xy - torch.outer(x, self.y) - torch.outer(self.x, y) + self.count * torch.outer(x, y)
        yy = self.yy - 2 * y * self.y + self.count * y.square()
        return Sums(self.count, self.x - self.count * x, self.y - self.count * y, xx, xy, yy)


@dataclass(frozen=True, eq=False)
class Ridge:
    """A ridge regression with every ridge at hand: one decomposition of the inputs' covariance."""

    centre: tuple[Float[Tensor, " input"], Float[Tensor, " output"]]
    """Means of inputs and outputs."""
    axes: Float[Tensor, "input axis"]
    """Principal axes of the inputs."""
    scatter: Float[Tensor, " axis"]
    """Σ of the squared deviations along each."""
    along: Float[Tensor, "axis output"]
    """Σ of their products with the outputs' deviations."""
    unit: float
    """The ridge of 1: tokens times the inputs' mean variance."""

    @classmethod
    def of(cls, sums: Sums) -> Ridge:
        """Decompose."""
        centre = (sums.x / sums.count, sums.y / sums.count)
        about = sums.about(*centre)
        scatter, axes = torch.linalg.eigh(about.xx)
        unit = max(float(about.xx.trace()) / len(about.xx), 1e-30)
        return cls(centre, axes, scatter.clamp(min=0), axes.T @ about.xy, unit)

    def coefficients(self, ridge: float) -> Float[Tensor, "axis output"]:
        """The regression's weights, in principal axes."""
        return self.along / (self.scatter + max(ridge, _LEAST) * self.unit)[:, None]

    def weights(self, ridge: float) -> tuple[Float[Tensor, "output input"], Float[Tensor, " output"]]:
        """The matrix and the offset of `y ≈ M x + c`."""
        matrix = (self.axes @ self.coefficients(ridge)).T
        return matrix, self.centre[1] - matrix @ self.centre[0]

    def errors(self, held_out: Sums, ridges: Sequence[float]) -> Float[Tensor, "ridge output"]:
        """Squared error on other tokens, of each output with each ridge."""
        about = held_out.about(*self.centre)
        xx, xy = self.axes.T @ about.xx @ self.axes, self.axes.T @ about.xy
        found = []
        for ridge in ridges:
            weights = self.coefficients(ridge)
            found.append(about.yy - 2 * (weights * xy).sum(0) + (weights * (xx @ weights)).sum(0))
        return torch.stack(found).clamp(min=0)


@dataclass(frozen=True, eq=False)
class Validated:
    """Errors on texts held out."""

    error: Float[Tensor, "fold ridge output"]
    """Squared error of each fold, from the regression on all others."""
    spread: Float[Tensor, "fold output"]
    """Squared deviation from the mean of all others: the error of a constant."""

    def r2(self, ridge: int) -> float:
        """Share of the outputs' variance that is predicted with a ridge, of all outputs together; NaN if they do not vary."""
        below = float(self.spread.sum())
        return 1 - float(self.error[:, ridge].sum()) / below if below > 0 else float("nan")

    @property
    def best(self) -> int:
        """Index of the ridge with the smallest error."""
        return int(self.error.sum((0, 2)).argmin())


def cross_validated(folds: Sequence[Sums], total: Sums, ridges: Sequence[float]) -> Validated:
    """Predict each fold from all others with each ridge; folds without tokens are left out."""
    errors, spreads = [], []
    for fold in folds:
        others = total - fold
        if fold.count == 0 or others.count == 0:
            continue
        fitted = Ridge.of(others)
        errors.append(fitted.errors(fold, ridges))
        spreads.append(fold.about(*fitted.centre).yy)
    return Validated(torch.stack(errors), torch.stack(spreads))
