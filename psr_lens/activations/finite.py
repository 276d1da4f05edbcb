"""Activations and logits that are not finite: an error that names the hook point, before anything is computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens.errors import ModelError

_REMEDY: Final = "Load the model in float32 or bfloat16; if it is, look for damaged weights, or hooks that overflow."


def check_finite(activations: Mapping[str, Float[Tensor, "..."]], remedy: str = _REMEDY) -> None:
    """Check activations by hook name, in the order in which the points fire; it reads each tensor once.

    Raises:
        ModelError: some are NaN or infinite; names the first hook point that has them.
    """
    sums = [values.sum(dtype=torch.promote_types(values.dtype, torch.float32)) for values in activations.values()]
    if not sums or bool(torch.stack([each.to(sums[0]) for each in sums]).isfinite().all()):
        return
    for name, values in activations.items():  # a sum may overflow by itself
        if not bool(values.isfinite().all()):
            raise ModelError(f"{name}: the activations are not all finite. {remedy}")


def finite_rows(logits: Float[Tensor, "*row d_vocab"]) -> Bool[Tensor, "*row"]:
    """For each row, whether its logits are valid: no NaN or +∞, and not all −∞ (−∞ marks an impossible token)."""
    return logits.amax(-1).isfinite()  # NaN is the largest


def finite_logits(logits: Float[Tensor, "*row d_vocab"]) -> bool:
    """Whether all rows are finite, see `finite_rows`."""
    return bool(finite_rows(logits).all())


def check_logits(logits: Float[Tensor, "*row d_vocab"]) -> None:
    """Check logits.

    Raises:
        ModelError: a distribution cannot be computed from them.
    """
    if not finite_logits(logits):
        raise ModelError(f"The logits are not all finite. {_REMEDY}")
