"""Adding to the weights of linear layers for the length of a `with` block, in place, so that whatever computes with them sees it.

A bridge, and a `HookedTransformer` that `load_model` loaded, compute with views of a plain transformers model's weights: `plain_model.py`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from psr_lens.errors import ModelError
from psr_lens.models.foreign_hooks import has_hooks
from psr_lens.models.forward_pass import frozen, weights_of_one_thread
from psr_lens.models.hooked_model import HookedModel, is_bridge
from psr_lens.models.plain_model import held_plain_model, same_logits

_PROBED_BY: Final = 0.1
"""Size of the change with which it is tried once whether a model computes with its plain model's weights, in their standard deviations."""

_lock = threading.RLock()
_in_force: set[int] = set()
"""Addresses of weights that something is added to."""
_tried: weakref.WeakKeyDictionary[Any, set[frozenset[str]]] = weakref.WeakKeyDictionary()
"""Names of layers of which it is known that the model computes with their weights."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of a linear layer's weight, B A; A and B may be on any device."""

    a: Float[Tensor, "rank in"]
    """A, `[rank, in]`."""
    b: Float[Tensor, "out rank"]
    """B, `[out, rank]`."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the change, with a row for each output."""
        return torch.Size((len(self.b), self.a.shape[1]))

    def on(self, device: torch.device) -> Float[Tensor, "out in"]:
        """The change, in float32 on a device."""
        return self.b.to(device).float() @ self.a.to(device).float()


def plain_with_shared_weights(model: HookedModel) -> nn.Module:
    """The plain transformers model whose weights a model computes with; its modules are the caller's own, its weights are not.

    Raises:
        ModelError: there is none.
    """
    found = held_plain_model(model)
    if found is None:
        raise ModelError(
            "model: it does not compute with the weights of a transformers model as that has them, so an adapter cannot act on it (they "
            "were processed, replaced, or spread over devices). Load it with `psr_lens.load_model(…, backend='bridge')`."
        )
    return found


def linear_weight(plain: nn.Module, name: str) -> Float[Tensor, "out in"]:
    """The weight of a linear layer of a transformers model, as a view with a row for each output.

    Raises:
        ModelError: there is no such layer, it is not linear, or its weight is quantised.
    """
    try:
        layer: Any = plain.get_submodule(name)
    except AttributeError as error:
        raise ModelError(f"model: it has no layer {name!r}. Load the model that the adapter was made for.") from error
    if not isinstance(layer, nn.Linear | Conv1D) or not layer.weight.is_floating_point() or layer.weight.is_meta:
        what = type(layer).__name__
        raise ModelError(
            f"model: {name} is no linear layer with plain weights ({what}). Load the model without quantisation or offloading."
        )
    weight = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


@contextmanager
def weights_added(model: HookedModel, changes: Mapping[str, LowRank], factor: float) -> Iterator[None]:
    """Add to the weights of linear layers; at the end of the block they are bit-identical to what they were.

    Args:
        model: The model. Functions of psr_lens refuse it in other threads meanwhile.
        changes: What to add, by the layer's name in the plain transformers model; the sum has the weights' own type.
        factor: What the changes are multiplied by; 0 leaves the model as it is, and free for other threads.

    Raises:
        ModelError: the model does not compute with weights that can be changed, lacks a layer, has other sizes, or something is being added
            to its weights already, or another thread is using the model.
    """
    if factor == 0:  # other threads may go on using the weights
        _fitting(model, changes)
        yield
        return
    with weights_of_one_thread(model):
        plain, weights = _fitting(model, changes)
        _check_used(model, plain, weights)
        with _changed(weights, lambda name, device: factor * changes[name].on(device)):
            yield


def _fitting(model: HookedModel, changes: Mapping[str, LowRank]) -> tuple[nn.Module, dict[str, Tensor]]:
    """The plain model that holds the weights, and those that are to be changed.

    Raises:
        ModelError: it holds none, lacks a layer, or has other sizes.
    """
    plain = plain_with_shared_weights(model)
    weights = {name: linear_weight(plain, name) for name in changes}
    for name, weight in weights.items():
        if weight.shape != changes[name].shape:
            got, wanted = (" × ".join(map(str, each.shape)) for each in (changes[name], weight))
            raise ModelError(
                f"model: {name} is {wanted}, the adapter's change {got}. Load the model that the adapter was made for."
            )
    return plain, weights


@contextmanager
def _changed(weights: Mapping[str, Tensor], change: Callable[[str, torch.device], Tensor]) -> Iterator[None]:
    places = {weight.data_ptr() for weight in weights.values()}
    if len(places) < len(weights):
        raise ModelError("model: two layers of the adapter share a weight, to which it would be added twice. Train on one of them.")
    with _lock:
        if places & _in_force:
            raise ModelError("model: an adapter is in force on it already. End its `with` block first.")
        _in_force.update(places)
    kept: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                kept[name] = weight.clone()
                weight.add_(change(name, weight.device).to(weight.dtype))
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                weights[name].copy_(weight)
        with _lock:
            _in_force.difference_update(places)


def _check_used(model: HookedModel, plain: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse a model that computes with copies of some of the weights.

    Raises:
        ModelError: it does.
    """
    if not is_bridge(model):  # of a bridge, `held_plain_model` knows it
        _check_shared(cast(nn.Module, model), weights)
    names, known = frozenset(weights), _tried.setdefault(model, set())
    if names in known or has_hooks(model):
        return
    generator = torch.Generator().manual_seed(0)

    def drawn(name: str, device: torch.device) -> Tensor:
        weight = weights[name]
        return torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(device) * weight.float().std() * _PROBED_BY

    with _changed(weights, drawn), frozen(model):  # without dropout
        agree = same_logits(model, plain)
    if not agree:
        raise _copies(sorted(names))
    known.add(names)


def _check_shared(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    counts: dict[int, int] = {}
    for parameter in model.parameters():
        place = parameter.untyped_storage().data_ptr()
        counts[place] = counts.get(place, 0) + parameter.numel()
    if absent := [name for name, each in weights.items() if counts.get(each.untyped_storage().data_ptr(), 0) < each.numel()]:
        raise _copies(absent)


def _copies(names: Sequence[str]) -> ModelError:
    return ModelError(
        f"model: it computes with copies of the weights of {names[0]}{' and others' if len(names) > 1 else ''}, so an adapter cannot act "
        "on it. Load it with `psr_lens.load_model(…, backend='bridge')`."
    )
