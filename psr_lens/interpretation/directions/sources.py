"""Where directions of the residual stream come from: replacements, statistics of Δ, or plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.statistics import CapturedStatistics
from psr_lens.errors import InputError
from psr_lens.models.hook_points import layer_of
from psr_lens.replacement import Replacement

Part = Literal["directions", "weights"]
"""`directions`: what a replacement adds, `z`; `weights`: what its probe reads, `w`."""

Source = Replacement | CapturedStatistics | Mapping[str, Float[Tensor, "rank d_model"]]
"""Directions in the residual stream by hook name: a replacement, the singular directions of Δ, or tensors."""

_RESIDUAL: Final = ("hook_embed", "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
"""Hook points whose activations are in the basis of the residual stream."""


def directions_of(source: Source, part: Part = "directions") -> dict[str, Float[Tensor, "rank d_model"]]:
    """Directions by hook name, in the order of the layers.

    Raises:
        InputError: unknown part, unsupported type of source, or directions outside the residual stream.
    """
    if part not in get_args(Part):
        raise InputError("part", repr(part), "'directions' or 'weights'")
    if isinstance(source, Replacement):
        found = {name: getattr(site, part) for name, site in source.sites.items()}
    elif isinstance(source, CapturedStatistics):
        found = {name: statistics.directions for name, statistics in source.overall.items()}
    elif isinstance(source, Mapping) and all(isinstance(value, Tensor) for value in source.values()):
        found = dict(source)
    else:
        raise InputError(
            "source", type(source).__name__, "a Replacement, CapturedStatistics, or a mapping to [rank, d_model] tensors"
        )
    for name, vectors in found.items():
        if not name.endswith(_RESIDUAL) or vectors.ndim != 2:
            raise InputError(
                "source",
                f"directions at {name}, {' × '.join(map(str, vectors.shape))}",
                "directions in the residual stream, [rank, d_model]",
                "Other hook points have a basis of their own.",
            )
    return {name: vectors.detach().float().cpu() for name, vectors in sorted(found.items(), key=_by_layer)}


def _by_layer(item: tuple[str, object]) -> int:
    layer = layer_of(item[0])
    return -1 if layer is None else layer
