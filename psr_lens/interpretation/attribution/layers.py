"""One forward pass over both contexts, each layer split up as it passes by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.batches import ContextBatch
from psr_lens.activations.paired_passes import Difference
from psr_lens.interpretation.attribution.output import HeadOutput
from psr_lens.interpretation.attribution.reading import Keys, LayerParts, Reading, read_heads, with_norm
from psr_lens.models import HookedModel, forward, hooked

ROUNDING: Final = 4
"""A difference of at most so many units of precision of what is subtracted counts as none."""

_READ: Final = ("attn.hook_v", "attn.hook_pattern", "hook_resid_pre", "hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True)
class SplitLayer:
    """What one layer did with one batch."""

    layer: int
    """The layer."""
    parts: LayerParts
    """Δ after it, in parts."""
    delta: Float[Tensor, "token d_model"]
    """Δ after it, as it was read."""
    size: Float[Tensor, " token"]
    """‖A'‖ of the prompted residual stream after it: what rounding is measured by."""
    reading: Reading
    """What its heads read."""
    scale: Float[Tensor, " token"]
    """What the norm behind the attention makes of what is read; 1 without one."""


def split_layers(
    model: HookedModel,
    both: ContextBatch,
    keys: Keys,
    outputs: Mapping[int, HeadOutput],
    difference: Difference,
    each: Callable[[SplitLayer], None],
) -> None:
    """Hand each layer of `outputs` to `each`, in the model's order; the activations of a layer are let go before the next."""
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
            heads, scale = with_norm(reading, output, *attention)
            parts = LayerParts(heads, mlp[1] - mlp[0], pre[1] - pre[0], output)
            each(SplitLayer(layer, parts, post[1] - post[0], post[1].norm(dim=-1), reading, scale))

        return hook

    def replace(activation: Tensor, hook: Any) -> Tensor:
        """The base context goes on with the prompted residual stream on the span."""
        replaced = activation.clone()
        flat = replaced.flatten(0, 1)
        flat[base.to(flat.device)] = flat[prompted.to(flat.device)]
        return replaced

    hooks = [(f"blocks.{layer}.{kind}", keep(kind)) for layer in outputs for kind in _READ]
    hooks += [(f"blocks.{layer}.hook_resid_post", finish(layer, output)) for layer, output in outputs.items()]
    if difference == "local":  # behind the reading hook, which sees what the block itself made
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
    return after - before, after.norm(dim=-1)


def above_rounding(
    delta: Float[Tensor, "token d_model"], size: Float[Tensor, " token"], dtype: torch.dtype
) -> Float[Tensor, "token d_model"]:
    """Δ, with 0 on tokens on which it is no more than the rounding of two passes: shares of that would be noise."""
    floor = ROUNDING * torch.finfo(dtype).eps * size
    return torch.where((delta.norm(dim=-1) > floor)[:, None], delta, 0)
