"""Plain forward passes of padded sequences, and a context manager that keeps a model in evaluation mode without gradients."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.errors import ModelError
from psr_lens.models.foreign_hooks import module_has_hooks
from psr_lens.models.hooked_model import HookedModel, all_modules, is_bridge


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
    with stopped(model, stop_at_layer) as given:
        return cast(Tensor, model(tokens, attention_mask=mask, **given)).to(tokens.device)


@contextmanager
def stopped(model: HookedModel, layer: int | None) -> Iterator[dict[str, int]]:
    """What to call a model with, inside a `with` block, so that it stops before a layer.

    A bridge would note on its blocks where to stop, and stop calls of other threads there too, so it gets a hook for this thread alone.

    Args:
        model: The model.
        layer: The first layer that is not run; None to run all.
    """
    if layer is None or not is_bridge(model):
        yield {} if layer is None else {"stop_at_layer": layer}
        return
    from transformer_lens.model_bridge.exceptions import StopAtLayerException

    block, thread = cast(Any, model).blocks[layer], threading.get_ident()

    def stop(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            raise StopAtLayerException(module.hook_in(arguments[0] if arguments else named["hidden_states"]))

    handle = block.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield {}
    finally:
        handle.remove()


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

    def all_of(logits: Tensor) -> Tensor:
        return logits.flatten(0, 1)[rows.to(logits.device)]

    unembed = getattr(model, "unembed", None)
    if isinstance(unembed, torch.nn.Module) and any(map(module_has_hooks, unembed.modules())):
        yield all_of  # such hooks are to see every position
        return
    with _unembedding(model, lambda residual: residual.flatten(0, 1)[None, rows.to(residual.device)]) as alone:
        yield (lambda logits: logits[0]) if alone else all_of


@contextmanager
def _unembedding(model: HookedModel, select: Callable[[Tensor], Tensor]) -> Iterator[bool]:
    """Only a selection of the positions is unembedded; False for a model whose unembedding is no module, which unembeds all of them."""
    unembed = getattr(model, "unembed", None)
    if not isinstance(unembed, torch.nn.Module):
        yield False
        return
    thread = threading.get_ident()

    def selected(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (select(given[0]), *given[1:]) if given and threading.get_ident() == thread else None

    handle = unembed.register_forward_pre_hook(selected)
    try:
        yield True
    finally:
        handle.remove()


def position_ids(mask: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """The position that a transformers model is to give each token: tokens are counted, padding is not."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


@dataclass(eq=False)
class _Frozen:
    """What a model was like before the first of the blocks that are open now, and how many are open in which thread."""

    trained: set[torch.nn.Parameter]
    training: list[torch.nn.Module]
    blocks: Counter[int]


_frozen: weakref.WeakKeyDictionary[Any, _Frozen] = weakref.WeakKeyDictionary()
_changed: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""The thread that has changed a model's weights for a while."""
_lock = threading.Lock()


@contextmanager
def frozen(model: HookedModel) -> Iterator[None]:
    """Evaluation mode and no gradients to the weights inside a `with` block; both are restored when the last such block has ended.

    Raises:
        ModelError: the weights are changed in a block of `weights_of_one_thread` of another thread.
    """
    thread = threading.get_ident()
    with _lock:
        if _changed.get(model, thread) != thread:
            raise ModelError(
                "model: an adapter of another thread is in force on it. End that `with` block first, or load the model again."
            )
        found = _frozen.get(model)
        if found is None:
            modules = all_modules(model)
            weights = {each for module in modules for each in module._parameters.values() if each is not None}
            trained, training = {each for each in weights if each.requires_grad}, [each for each in modules if each.training]
            for parameter in trained:
                parameter.requires_grad_(False)
            if training:
                model.train(False)
            found = _frozen[model] = _Frozen(trained, training, Counter())
        found.blocks[thread] += 1
    try:
        yield
    finally:
        with _lock:
            found.blocks[thread] -= 1
            if not any(found.blocks.values()):
                del _frozen[model]
                for parameter in found.trained:
                    parameter.requires_grad_(True)
                for module in found.training:
                    module.training = True


@contextmanager
def weights_of_one_thread(model: HookedModel) -> Iterator[None]:
    """A `with` block in which this thread may change the weights for a while; `frozen` blocks of other threads are refused.

    Raises:
        ModelError: another thread is in a `frozen` block, and so is using the model.
    """
    thread = threading.get_ident()
    with _lock:
        found, before = _frozen.get(model), _changed.get(model)
        if before not in (None, thread) or (found is not None and any(n for each, n in found.blocks.items() if each != thread)):
            raise ModelError(
                "model: another thread is using it, so its weights cannot be changed. Wait until that thread has ended."
            )
        _changed[model] = thread
    try:
        yield
    finally:
        with _lock:
            if before is None:
                del _changed[model]
