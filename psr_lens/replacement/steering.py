"""What everything that steers a model has in common."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from psr_lens.models import (
    HookedModel,
)
from psr_lens.replacement.hooks import Start, SteeringHooks


@runtime_checkable
class Steering(Protocol):
    """Anything that steers a model; `Replacement` and `SteeringPlan` are."""

    def hooks(
        self, model: HookedModel, alpha: float | Float[Tensor, " batch"] = ..., *, start: Start | None = ...
    ) -> SteeringHooks:
        """Hooks that steer from position `start` of each sequence on; callers here give one position a span and sequence."""
