"""The linear map from a layer's head outputs to what its attention adds to the residual stream.

In most models `attn_out = Σ_h z_h W_O,h + b_O`, and the bias is the same in both contexts. Gemma-2, Gemma-3 and OLMo-2 apply an RMSNorm
to this sum, which divides it by a scale of each token's own and multiplies it by fixed gains. The gains come from an exact regression on
one batch and not from the weights, whose names and conventions (w or 1 + w) differ between models. The regression also detects any
other kind of norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.batches import context_batch
from psr_lens.activations.finite import check_finite
from psr_lens.errors import ModelError
from psr_lens.models import HookedModel, device_of, dtype_of, forward, hooked
from psr_lens.prompts import Triplet

TOLERANCE: Final = 1e-3
"""Largest relative error at which a reconstructed output counts as exact; larger for models in 16-bit precision."""


@dataclass(frozen=True, eq=False)
class HeadOutput:
    """The output map of one layer's heads."""

    weights: Float[Tensor, "head d_head d_model"]
    """W_O, times the gains of the norm after the attention, if there is one."""
    has_norm: bool
    """Whether a norm follows that scales each token."""

    def scale(self, z: Float[Tensor, "token head d_head"], out: Float[Tensor, "token d_model"]) -> Float[Tensor, " token"]:
        """The factor that the norm applies to each token; 1 without a norm."""
        if not self.has_norm:
            return torch.ones_like(out[:, 0])
        unscaled = self.summed(z)
        return (out * unscaled).sum(-1) / unscaled.square().sum(-1).clamp(min=torch.finfo(out.dtype).tiny)

    def summed(self, z: Float[Tensor, "token head d_head"]) -> Float[Tensor, "token d_model"]:
        """Σ_h z_h W_O,h, times the gains."""
        return z.flatten(1) @ self.weights.flatten(0, 1)

    def before(self, direction: Float[Tensor, "token d_model"]) -> Float[Tensor, "token head d_head"]:
        """A direction pulled back through W_O to each head: z·before(d) = (z W_O)·d."""
        return torch.einsum("tm,hdm->thd", direction, self.weights)


def head_outputs(model: HookedModel, triplets: Sequence[Triplet], layers: Sequence[int]) -> dict[int, HeadOutput]:
    """The output maps of some layers, from one forward pass over a few triplets.

    Raises:
        ModelError: a layer's attention output is not a supported function of its heads' outputs.
    """
    found: dict[str, Tensor] = {}
    names = [name for layer in layers for name in (f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_attn_out")]
    if missing := [name for name in names if name not in model.hook_dict]:
        raise ModelError(f"model: got one without the hook point {missing[0]!r}, which is needed to separate its heads.")
    batch = context_batch(triplets, "prompted", "R", device_of(model))

    def keep(name: str) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            found[name] = activation.to(batch.mask.device)[batch.mask.bool()].float()

        return hook

    with hooked(model, [(name, keep(name)) for name in names]):
        forward(model, batch.tokens, batch.mask, max(layers) + 1)
    check_finite(found)
    return {
        layer: _output(model, layer, found[f"blocks.{layer}.attn.hook_z"], found[f"blocks.{layer}.hook_attn_out"])
        for layer in layers
    }


def _output(model: HookedModel, layer: int, z: Tensor, out: Float[Tensor, "token d_model"]) -> HeadOutput:
    attention = cast(Any, model).blocks[layer].attn
    weights = getattr(attention, "W_O", None)
    if weights is None or z.ndim != 3 or weights.shape != (*z.shape[1:], out.shape[1]):
        raise ModelError(
            f"model: the output weights of the heads of layer {layer} (`blocks[{layer}].attn.W_O`) are missing or do not match its "
            "`hook_z`."
        )
    bias = getattr(attention, "b_O", None)
    bias = torch.zeros_like(out[0]) if bias is None else bias.to(out.device, torch.float32)
    plain = HeadOutput(weights.to(out.device, torch.float32), False)
    unscaled = plain.summed(z) + bias
    allowed = TOLERANCE + 8 * torch.finfo(dtype_of(model)).eps
    if _relative(out - unscaled, out) <= allowed:
        return plain
    scaled = unscaled * (unscaled.square().mean(-1, keepdim=True) + float(model.cfg.eps)).rsqrt()
    gains = (out * scaled).sum(0) / scaled.square().sum(0).clamp(min=torch.finfo(out.dtype).tiny)
    if _relative(out - gains * scaled, out) <= allowed and not bool(bias.any()):  # a scaled bias would belong to no head
        return HeadOutput(plain.weights * gains, True)
    raise ModelError(
        f"model: the attention output of layer {layer} is neither the sum of its heads' outputs nor an RMSNorm of that sum without a "
        "bias. Attribution does not support this architecture; `patching` does."
    )


def _relative(error: Tensor, of: Tensor) -> float:
    return float(error.norm() / of.norm().clamp(min=torch.finfo(of.dtype).tiny))
