"""Plain forward passes of padded sequences, and a context manager that keeps a model in evaluation mode without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.models.hooked_model import HookedModel, all_modules
from psr_lens.models.other_hooks import module_has_hooks


def forward(
    model: HookedModel,
    tokens: Int[Tensor, "batch position"],
    mask: Int[Tensor, "batch position"],
    stop_at_layer: int | None = None,
) -> Tensor:
    """Run a plain forward pass of padded sequences; hooks see `[batch, position, …]`.

    Args:
        model: The model.
        tokens: Token ids, padded on either side.
        mask: 1 where a token is real, 0 on padding.
        stop_at_layer: Skip this layer and all later ones; the residual stream is returned instead of logits. The number of layers skips
            none of them, but all logits save those of the first position.

    Returns:
        Logits, `[batch, position, d_vocab]`; the residual stream, `[batch, position, d_model]`, if it stops early.
    """
    if stop_at_layer is not None and stop_at_layer >= model.cfg.n_layers:
        with hardly_any_logits(model):
            return forward(model, tokens, mask)
    return cast(Tensor, model(tokens, attention_mask=mask, stop_at_layer=stop_at_layer)).to(tokens.device)


@contextmanager
def hardly_any_logits(model: HookedModel) -> Iterator[None]:
    """Logits at the first position alone inside a `with` block, for passes that need none.

    With a large vocabulary those of all positions take as long as several layers, and more memory than all activations.
    """
    with _unembedding(model, lambda residual: residual[:, :1]):
        yield


@contextmanager
def logits_at(model: HookedModel, rows: Int[Tensor, " row"]) -> Iterator[Callable[[Tensor], Float[Tensor, "row d_vocab"]]]:
    """Logits at some positions alone inside a `with` block, for a pass that needs no others.

    Args:
        model: The model.
        rows: Indices of the positions in the flattened batch.

    Yields:
        What takes these rows from the logits that the model returns, whether or not it computed others.
    """
    with _unembedding(model, lambda residual: residual.flatten(0, 1)[None, rows.to(residual.device)]) as alone:
        yield lambda logits: logits[0] if alone else logits.flatten(0, 1)[rows.to(logits.device)]


@contextmanager
def _unembedding(model: HookedModel, select: Callable[[Tensor], Tensor]) -> Iterator[bool]:
    """Only a selection of the positions is unembedded. Where that cannot be, all of them are, and it yields False.

    That is so if the unembedding is no module, or if there are hooks on it, which are to see every position.
    """
    unembed = getattr(model, "unembed", None)
    if not isinstance(unembed, torch.nn.Module) or any(map(module_has_hooks, unembed.modules())):
        yield False
        return
    handle = unembed.register_forward_pre_hook(lambda module, given: (select(given[0]), *given[1:]))
    try:
        yield True
    finally:
        handle.remove()


def position_ids(mask: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """The position that a transformers model is to give each token: tokens are counted, padding is not."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@contextmanager
def frozen(model: HookedModel) -> Iterator[None]:
    """Evaluation mode and no gradients to the weights inside a `with` block; both are restored afterwards."""
    modules = all_modules(model)
    trained = {each for module in modules for each in module._parameters.values() if each is not None and each.requires_grad}
    training = [module for module in modules if module.training]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        if training:
            model.train(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
