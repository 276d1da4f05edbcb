"""What everything that steers a model has in common."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.models import HookedModel
from psr_lens.replacement.hooks import Start, SteeringHooks


@runtime_checkable
class Steering(Protocol):
    """Anything that steers a model; `Replacement` and `SteeringPlan` are."""

    def hooks(
        self, model: HookedModel, alpha: float | Float[Tensor, " batch"] = ..., *, start: Start | None = ...
    ) -> SteeringHooks:
        """Hooks that steer from position `start` of each sequence on; callers here give one position a span and sequence."""


def check_steering(replacement: object) -> None:
    """Refuse what cannot steer a model.

    Raises:
        InputError: `replacement` is neither None nor a replacement nor a plan.
    """
    # A model has `hooks` too.
    if replacement is not None and (not isinstance(replacement, Steering) or isinstance(replacement, HookedModel)):
        raise InputError(
            "replacement",
            type(replacement).__name__,
            "a Replacement, a SteeringPlan or None",
            "`psr.fit` returns a Replacement; None leaves the model as it is.",
        )
