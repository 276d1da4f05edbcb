"""One forward pass over both contexts that splits Δ layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.batches import ContextBatch
from psr_lens.activations.finite import check_finite
from psr_lens.activations.paired_passes import Difference
from psr_lens.interpretation.attribution.head_output import HeadOutput
from psr_lens.interpretation.attribution.head_reading import HeadParts, Keys, LayerParts, read_heads, with_norm
from psr_lens.models import HookedModel, forward, hooked

ROUNDING: Final = 4
"""A difference of at most this many units of machine precision, relative to the activation, counts as zero."""

_READ: Final = ("attn.hook_v", "attn.hook_pattern", "hook_resid_pre", "hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True, eq=False)
class SplitLayer:
    """Δ after one layer for one batch, and its parts."""

    layer: int
    """The layer."""
    parts: LayerParts
    """The parts of Δ after the layer."""
    delta: Float[Tensor, "token d_model"]
    """Δ after the layer, as read from the residual stream."""
    size: Float[Tensor, " token"]
    """‖A'‖ of the prompted residual stream after the layer: the scale of rounding errors."""
    reading: HeadParts
    """What the layer's heads read."""
    scale: Float[Tensor, " token"]
    """Scale of the norm after the attention, the mean of both contexts; 1 without such a norm."""


def split_layers(
    model: HookedModel,
    both: ContextBatch,
    keys: Keys,
    outputs: Mapping[int, HeadOutput],
    difference: Difference,
    each: Callable[[SplitLayer], None],
) -> None:
    """Call `each` for each layer of `outputs`, in the model's order; only one layer's activations are held at a time.

    Raises:
        ModelError: Δ is not finite; names the hook point.
    """
    held: dict[str, Tensor] = {}
    base, prompted = both.rows.chunk(2)

    def keep(kind: str) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            held[kind] = activation.to(both.tokens.device)

        return hook

    def on_span(activation: Tensor) -> tuple[Tensor, Tensor]:
        flat = activation.to(base.device).flatten(0, 1)
        return flat.index_select(0, base).float(), flat.index_select(0, prompted).float()

    def finish(layer: int, output: HeadOutput) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            values, pattern, *streams = (held.pop(kind) for kind in _READ)
            reading = read_heads(pattern, values, keys)
            pre, attention, mlp, post = (on_span(stream) for stream in (*streams, activation))
            delta = post[1] - post[0]
            check_finite({f"blocks.{layer}.hook_resid_post": delta})
            heads, scale = with_norm(reading, output, *attention)
            parts = LayerParts(heads, mlp[1] - mlp[0], pre[1] - pre[0], output)
            each(SplitLayer(layer, parts, delta, post[1].norm(dim=-1), reading, scale))

        return hook

    def replace(activation: Tensor, hook: Any) -> Tensor:
        """Continue the base context with the prompted residual stream on the span."""
        replaced = activation.clone()
        flat = replaced.flatten(0, 1)
        flat[base.to(flat.device)] = flat[prompted.to(flat.device)]
        return replaced

    hooks = [(f"blocks.{layer}.{kind}", keep(kind)) for layer in outputs for kind in _READ]
    hooks += [(f"blocks.{layer}.hook_resid_post", finish(layer, output)) for layer, output in outputs.items()]
    if difference == "local":  # added after the reading hook, which sees the block's own output
        hooks += [(f"blocks.{layer}.hook_resid_post", replace) for layer in range(max(outputs))]
    with hooked(model, hooks):
        forward(model, both.tokens, both.mask, max(outputs) + 1)


def delta_after(
    model: HookedModel, both: ContextBatch, layer: int
) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, " token"]]:
    """Δ_acc after a layer on the tokens of the span, and ‖A'‖."""
    found: list[Tensor] = []

    def keep(activation: Tensor, hook: Any) -> None:
        found.extend(activation.to(both.rows.device).flatten(0, 1).index_select(0, both.rows).float().chunk(2))

    with hooked(model, [(f"blocks.{layer}.hook_resid_post", keep)]):
        forward(model, both.tokens, both.mask, layer + 1)
    before, after = found
    check_finite({f"blocks.{layer}.hook_resid_post": after - before})
    return after - before, after.norm(dim=-1)


def above_rounding(
    delta: Float[Tensor, "token d_model"], size: Float[Tensor, " token"], dtype: torch.dtype
) -> Float[Tensor, "token d_model"]:
    """Δ, set to 0 on tokens where it is no larger than the rounding errors of two passes: shares of those would be noise."""
    floor = ROUNDING * torch.finfo(dtype).eps * size
    return torch.where((delta.norm(dim=-1) > floor)[:, None], delta, 0)
