"""Plain forward passes of padded sequences, and a context manager that keeps a model in evaluation mode without gradients."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from psr_lens.errors import ModelError
from psr_lens.models.foreign_hooks import module_has_hooks
from psr_lens.models.hooked_model import HookedModel, all_modules, is_bridge
from psr_lens.models.own_hooks import OfThisThread


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

    def stop(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise StopAtLayerException(module.hook_in(arguments[0] if arguments else named["hidden_states"]))

    handle = cast(Any, model).blocks[layer].register_forward_pre_hook(OfThisThread(stop), with_kwargs=True)
    try:
        yield {}
    finally:
        handle.remove()


@contextmanager
def hardly_any_logits(model: HookedModel) -> Iterator[None]:
    """Logits at the first position alone inside a `with` block, for passes that need none.

    With a large vocabulary those of all positions take as long as several layers, and more memory than all activations.
    """
    with _unembedding(model, lambda residual: residual[:, :1].contiguous()):
        yield


@contextmanager
def contiguous_unembedding(model: HookedModel | torch.nn.Module) -> Iterator[None]:
    """What is unembedded is copied together first inside a `with` block.

    Of a slice, such as the last position of each sequence, torch makes one matrix product a sequence, which takes many times as long where
    the weights have no gradients; in half precision on a CPU it also copies the weights for each of them.
    """
    with _unembedding(model, torch.Tensor.contiguous):
        yield


@contextmanager
def logits_at(
    model: HookedModel | torch.nn.Module, rows: Int[Tensor, " row"]
) -> Iterator[Callable[[Tensor], Float[Tensor, "row d_vocab"]]]:
    """Logits at some positions alone inside a `with` block, for a pass that needs no others.

    Args:
        model: The model, of TransformerLens or of plain transformers.
        rows: Indices of the positions in the flattened batch.

    Yields:
        What takes these rows from the logits that the model returns, whether or not it computed others.
    """

    def all_of(logits: Tensor) -> Tensor:
        return logits.flatten(0, 1)[rows.to(logits.device)]

    unembed = _unembedding_of(model)
    if unembed is not None and any(map(module_has_hooks, unembed.modules())):
        yield all_of  # such hooks are to see every position
        return
    with _unembedding(model, lambda residual: residual.flatten(0, 1)[None, rows.to(residual.device)]) as selected:
        yield lambda logits: logits[0] if selected else all_of(logits)


@contextmanager
def _unembedding(model: HookedModel | torch.nn.Module, select: Callable[[Tensor], Tensor]) -> Iterator[list[bool]]:
    """Only a selection of the positions is unembedded.

    Yields:
        A list that is empty as long as nothing was selected: a model whose unembedding is no module, or is not called, unembeds all.
    """
    unembed, selected = _unembedding_of(model), list[bool]()
    if unembed is None:
        yield selected
        return

    def before(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not given:
            return None
        selected.append(True)
        return (select(given[0]), *given[1:])

    handle = unembed.register_forward_pre_hook(OfThisThread(before))
    try:
        yield selected
    finally:
        handle.remove()


def _unembedding_of(model: HookedModel | torch.nn.Module) -> torch.nn.Module | None:
    """The module that turns the residual stream into logits; None if it is no module."""
    found = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else getattr(model, "unembed", None)
    return found if isinstance(found, torch.nn.Module) else None


def position_ids(mask: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """The position that a transformers model is to give each token: tokens are counted, padding is not."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


class _Blocks:
    """The blocks around a model that are open now, and what it was like before the first of them."""

    def __init__(self) -> None:
        self.frozen: Counter[int] = Counter()
        """How many `frozen` blocks are open in which thread."""
        self.changing: Counter[int] = Counter()
        """How many blocks are open in which thread that change the weights for a while."""
        self.trained: set[torch.nn.Parameter] = set()
        """The weights that had gradients."""
        self.training: set[torch.nn.Module] = set()
        """The modules that were in training mode."""
        self.is_frozen = False

    def others(self, blocks: Counter[int]) -> bool:
        """Whether some blocks are of another thread than this one."""
        return any(count for thread, count in list(blocks.items()) if thread != threading.get_ident())

    def freeze(self, model: HookedModel) -> None:
        """Evaluation mode, and no gradients to the weights."""
        modules = all_modules(model)
        weights = {each for module in modules for each in module._parameters.values() if each is not None}
        # Added to what is there: a finaliser that runs in between may have frozen the model itself.
        self.trained |= {each for each in weights if each.requires_grad}
        self.training |= {each for each in modules if each.training}
        for parameter in self.trained:
            parameter.requires_grad_(False)
        if self.training:
            model.train(False)
        self.is_frozen = True

    def thaw(self) -> None:
        """As it was before."""
        trained, training = self.trained, self.training
        self.trained, self.training, self.is_frozen = set(), set(), False
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


_blocks: weakref.WeakKeyDictionary[Any, _Blocks] = weakref.WeakKeyDictionary()
"""Never removed while the model lives, so that whatever a finaliser does between two steps here, both are about the same blocks."""
_lock = threading.RLock()
"""Re-entrant, since garbage may be collected at any allocation: a generator with an open block then ends it in this thread."""


@contextmanager
def frozen(model: HookedModel) -> Iterator[None]:
    """Evaluation mode and no gradients to the weights inside a `with` block; both are restored when the last such block has ended.

    Raises:
        ModelError: the weights are changed in a block of `weights_of_one_thread` of another thread.
    """
    thread = threading.get_ident()
    with _lock:
        blocks = _blocks.setdefault(model, _Blocks())
        if blocks.others(blocks.changing):
            raise ModelError(
                "model: an adapter of another thread is in force on it. End that `with` block first, or load the model again."
            )
        blocks.frozen[thread] += 1
        if not blocks.is_frozen:
            blocks.freeze(model)
    try:
        yield
    finally:
        with _lock:
            blocks.frozen[thread] -= 1
            if not any(blocks.frozen.values()):
                blocks.thaw()


@contextmanager
def weights_of_one_thread(model: HookedModel) -> Iterator[None]:
    """A `with` block in which this thread may change the weights for a while; `frozen` blocks of other threads are refused.

    Raises:
        ModelError: another thread is in a `frozen` block, and so is using the model.
    """
    thread = threading.get_ident()
    with _lock:
        blocks = _blocks.setdefault(model, _Blocks())
        if blocks.others(blocks.changing) or blocks.others(blocks.frozen):
            raise ModelError(
                "model: another thread is using it, so its weights cannot be changed. Wait until that thread has ended."
            )
        blocks.changing[thread] += 1
    try:
        yield
    finally:
        with _lock:
            blocks.changing[thread] -= 1
