"""What can be in force on a model: replacements and plans, which act on activations, and what acts through the weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import CHECKS
from psr_lens.models import HookedModel, hooked
from psr_lens.replacement.actions import Start
from psr_lens.replacement.adapter import Adapter
from psr_lens.replacement.added_neurons import AddedNeurons
from psr_lens.replacement.steering import Steering, check_steering

InWeights = Adapter | AddedNeurons
"""What acts through the weights: on every token, with one strength for all sequences of a batch."""

Acting = Steering | InWeights
"""What can be in force on a model: a replacement, a plan, an adapter, or added neurons."""


def in_force(
    model: HookedModel, acting: Acting | None, alpha: float | Float[Tensor, " batch"] = 1.0, *, start: Start | None = None
) -> AbstractContextManager[Any]:
    """A block with something in force, in functions of psr_lens, which know where prompts end; None is the model as it is.

    Raises:
        ArtifactError, InputError, ModelError: as for its `steer`.
    """
    if isinstance(acting, InWeights):
        return acting.steer(model, float(alpha))
    return hooked(model, [] if acting is None else acting.hooks(model, alpha, start=start))


def check_acting(acting: object, argument: str = "replacement") -> None:
    """Refuse what cannot be in force on a model; the error calls it `argument`.

    Raises:
        InputError: it is neither None nor a replacement, a plan, an adapter or added neurons.
    """
    if not isinstance(acting, InWeights):
        check_steering(acting, argument)


CHECKS[Acting] = check_acting
