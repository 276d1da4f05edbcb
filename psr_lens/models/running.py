"""Forward passes, decode steps with a cache, and a model that nothing changes for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from jaxtyping import Int
from torch import Tensor

from psr_lens.models.hooked_model import HookedModel, all_modules


def forward(
    model: HookedModel,
    tokens: Int[Tensor, "batch position"],
    mask: Int[Tensor, "batch position"],
    stop_at_layer: int | None = None,
) -> Tensor:
    """A plain forward pass of padded sequences; hooks see `[batch, position, …]`.

    Args:
        model: The model.
        tokens: Token ids, padded on either side.
        mask: 1 where a token is real.
        stop_at_layer: Leave out this layer and all later ones; what is returned then is not the logits.

    Returns:
        Logits, `[batch, position, d_vocab]`.
    """
    if stop_at_layer is not None and stop_at_layer >= model.cfg.n_layers:
        stop_at_layer = None
    return cast(Tensor, model(tokens, attention_mask=mask, stop_at_layer=stop_at_layer)).to(tokens.device)


@contextmanager
def frozen(model: HookedModel) -> Iterator[None]:
    """Evaluation mode and no gradients to the weights for the length of a `with` block; both are put back after."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in all_modules(model)]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        model.train(False)
        yield
    finally:
        for parameter, required in wanted:
            parameter.requires_grad_(required)
        for module, training in modes:
            module.training = training
