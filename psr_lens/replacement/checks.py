"""Checks of what is given as a replacement."""

from __future__ import annotations

from psr_lens.errors import InputError
from psr_lens.models import HookedModel
from psr_lens.replacement.steering import Steering


def check_steering(replacement: object) -> None:
    """Refuse what cannot steer a model.

    Raises:
        InputError: `replacement` is neither None nor a replacement nor a plan.
    """
    is_model = isinstance(replacement, HookedModel)  # which has `hooks` too
    if replacement is not None and (is_model or not isinstance(replacement, Steering)):
        raise InputError(
            "replacement",
            type(replacement).__name__,
            "a Replacement, a SteeringPlan or None",
            "`psr.fit` returns a Replacement; None leaves the model as it is.",
        )
