"""More neurons in the MLPs of a model for the length of a `with` block, and what they are called in plain transformers.

An MLP of another width is the same module with larger weights, so whatever computes with these weights has the neurons, in the block and
in a checkpoint alike. Gated MLPs compute `act(x·read) · (x·up)` a neuron, others `act(x·read + bias)`; both add it times `write` to their
output.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from psr_lens.errors import ModelError
from psr_lens.models.added_weights import linear_weight
from psr_lens.models.forward_pass import weights_of_one_thread
from psr_lens.models.hooked_model import HookedModel, is_bridge
from psr_lens.models.plain_model import held_plain_model, wrapped_plain_model


@dataclass(frozen=True, eq=False)
class ExtraNeurons:
    """The weights of neurons beside those of an MLP."""

    read: Float[Tensor, "neuron d_model"]
    """What the activation function is applied to, as a row for each neuron: of the gate in a gated MLP."""
    write: Float[Tensor, "neuron d_model"]
    """What a neuron adds to the MLP's output at an activation of 1."""
    bias: Float[Tensor, " neuron"] | None = None
    """Added to what is read; None in gated MLPs, which have none."""
    up: Float[Tensor, "neuron d_model"] | None = None
    """The linear factor of gated MLPs; None in others."""

    @property
    def count(self) -> int:
        """Number of neurons."""
        return len(self.read)


@dataclass(frozen=True)
class MLPLayout:
    """Where a family of models keeps the weights of its MLPs, in plain transformers."""

    block: str
    """The blocks' own name, with the layer to fill in."""
    read: str
    """The linear layer that is read before the activation function."""
    write: str
    """The linear layer of the output."""
    up: str | None
    """The linear factor's layer; None without a gate."""
    size: str
    """The config's entry for the number of neurons."""

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a linear factor beside the activation function."""
        return self.up is not None

    def names(self, layer: int) -> tuple[str, str, str | None]:
        """Full names of the layers that read, write and give the linear factor."""
        block = self.block.format(layer)
        return f"{block}.{self.read}", f"{block}.{self.write}", None if self.up is None else f"{block}.{self.up}"


_GATED: Final = MLPLayout("model.layers.{}.mlp", "gate_proj", "down_proj", "up_proj", "intermediate_size")

MLP_LAYOUTS: Final[Mapping[str, MLPLayout]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _GATED),
    "gpt2": MLPLayout("transformer.h.{}.mlp", "c_fc", "c_proj", None, "n_inner"),
    "gpt_neox": MLPLayout("gpt_neox.layers.{}.mlp", "dense_h_to_4h", "dense_4h_to_h", None, "intermediate_size"),
}
"""By transformers' `model_type`."""

_RECTIFIERS: Final = {
    True: ("silu", "swish"),
    False: ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python"),
}
"""Activation functions that are near ReLU for large arguments, of gated MLPs and of others."""


def activation_name(plain: nn.Module) -> str:
    """The name of the MLPs' activation function in a model's config."""
    config = cast(Any, plain).config
    return str(getattr(config, "hidden_act", None) or getattr(config, "activation_function", None))


def mlp_layout(plain: nn.Module) -> MLPLayout:
    """Where a transformers model keeps the weights of its MLPs.

    Raises:
        ModelError: its family is none of those that are known, or its activation function is not near ReLU.
    """
    kind = str(cast(Any, plain).config.model_type)
    if kind not in MLP_LAYOUTS:
        raise ModelError(
            f"model: MLPs of the family {kind!r} cannot get more neurons here, those of {', '.join(map(repr, MLP_LAYOUTS))} can. "
            "Use a replacement (`psr.fit`), which acts on every family."
        )
    layout = MLP_LAYOUTS[kind]
    if activation_name(plain) not in _RECTIFIERS[layout.is_gated]:
        raise ModelError(
            f"model: its MLPs compute with {activation_name(plain)!r}, and neurons need one of "
            f"{', '.join(map(repr, _RECTIFIERS[layout.is_gated]))}. Use a replacement (`psr.fit`), which acts on every family."
        )
    return layout


def plain_with_mlps(model: HookedModel) -> nn.Module:
    """The plain transformers model whose weights a model computes with, of a family whose MLPs can get more neurons.

    Raises:
        ModelError: there is none, since weights were processed, replaced or spread, or the family is not known.
    """
    # Of a bridge, it does not matter here that attention may be computed with copies: an export is compared with it.
    found = wrapped_plain_model(model) if is_bridge(model) else held_plain_model(model)
    if found is None:
        raise ModelError(
            "model: it does not compute with the weights of a transformers model as that has them (they were processed, replaced, spread "
            "over devices, or have more neurons already), so its MLPs cannot get more neurons. Load it with `psr_lens.load_model`."
        )
    mlp_layout(found)
    return found


def widened(weight: Float[Tensor, "..."], rows: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """A weight with further rows in its own type and on its device, or a bias with further entries."""
    return torch.cat([weight.detach(), rows.to(weight.device, weight.dtype)])


_lock = threading.RLock()
_in_force: set[int] = set()
"""Models that have more neurons now, by id."""


@contextmanager
def neurons_added(model: HookedModel, layers: Mapping[int, ExtraNeurons], factor: float = 1.0) -> Iterator[None]:
    """Give MLPs more neurons; at the end of the block the model has the very weights that it had.

    Args:
        model: The model. Functions of psr_lens refuse it in other threads meanwhile.
        layers: The neurons of each layer.
        factor: What they write is multiplied by it; 0 leaves the model as it is.

    Raises:
        ModelError: its family is not known, its weights are not plain, its width is another, it has more neurons already, or another
            thread is using it.
    """
    with weights_of_one_thread(model):
        if id(model) in _in_force:
            raise ModelError("model: it has more neurons already. End that `with` block first.")
        plain = plain_with_mlps(model)
        layout = mlp_layout(plain)
        for layer, neurons in layers.items():
            check_fits(plain, layout, layer, neurons)
        if factor == 0:
            yield
            return
        with _lock:
            _in_force.add(id(model))
        try:
            with ExitStack() as stack:
                for layer, neurons in layers.items():
                    _widen(stack, model, plain, layer, neurons, factor)
                yield
        finally:
            with _lock:
                _in_force.discard(id(model))


def check_fits(plain: nn.Module, layout: MLPLayout, layer: int, neurons: ExtraNeurons) -> None:
    """Refuse neurons of another model.

    Raises:
        ModelError: the model has no such layer, is of another width, or has another kind of MLP.
    """
    read, _, _ = layout.names(layer)
    width = linear_weight(plain, read).shape[1]
    if neurons.read.shape[1] != width:
        raise ModelError(
            f"model: {read} reads {width} numbers, the neurons {neurons.read.shape[1]}. Load the model that they were made for."
        )
    if (neurons.up is not None) != layout.is_gated:
        ours, theirs = ("a gated MLP" if gated else "an MLP without a gate" for gated in (layout.is_gated, not layout.is_gated))
        raise ModelError(f"model: {read} is of {ours}, the neurons were made for {theirs}. Load the model that they were made for.")


def _widen(stack: ExitStack, model: HookedModel, plain: nn.Module, layer: int, neurons: ExtraNeurons, factor: float) -> None:
    """Replace one MLP's weights by larger ones, until the stack is left.

    Those of the transformers model are replaced in a `HookedTransformer` too, whose own become views of them again.
    """
    layout = mlp_layout(plain)
    write, none = neurons.write.float() * factor, torch.zeros(neurons.count)
    bias = none if neurons.bias is None else neurons.bias
    reading, writing, factors = layout.names(layer)
    own = cast(Any, model).original_model if is_bridge(model) else None
    wide: dict[str, Tensor] = {}
    for name, rows, added in ((reading, neurons.read, bias), (factors, neurons.up, none)):
        if name is not None and rows is not None:
            linear: Any = plain.get_submodule(name)
            wide[name] = _replaced(stack, linear, "weight", rows, transposed=isinstance(linear, Conv1D))
            if linear.bias is not None:
                _replaced(stack, linear, "bias", added)
            if isinstance(linear, Conv1D) and own is not None:  # which reshapes its output to this many numbers
                wrapped = _own_module(own, name)
                stack.callback(setattr, wrapped, "nf", wrapped.nf)
                wrapped.nf += neurons.count
    linear = plain.get_submodule(writing)
    wide[writing] = _replaced(stack, linear, "weight", write, transposed=not isinstance(linear, Conv1D))
    if own is None:
        mlp = cast(Any, model).blocks[layer].mlp
        _set(stack, mlp, "W_gate" if layout.is_gated else "W_in", wide[reading])
        if factors is not None:
            _set(stack, mlp, "W_in", wide[factors])
        _set(stack, mlp, "W_out", wide[writing].T)
        _replaced(stack, mlp, "b_in", bias)


def _replaced(stack: ExitStack, module: nn.Module, name: str, rows: Tensor, *, transposed: bool = False) -> Tensor:
    """Give a weight further rows, or columns that come as rows, or a bias further entries; a weight is returned as `[d_model, d_mlp]`."""
    before = module._parameters[name]
    if before is None:
        raise ModelError(f"model: an MLP has no {name}. Load the model with `psr_lens.load_model`.")
    wide = widened(before.T, rows).T.contiguous() if transposed else widened(before, rows)  # in memory as the checkpoint's
    _set(stack, module, name, wide)
    return wide if transposed or wide.ndim == 1 else wide.T


def _set(stack: ExitStack, module: nn.Module, name: str, value: Tensor) -> None:
    """A parameter, until the stack is left. The table of parameters is shared with plain copies of the module."""
    stack.callback(module._parameters.__setitem__, name, module._parameters[name])
    module._parameters[name] = nn.Parameter(value, requires_grad=False)


def _own_module(root: nn.Module, name: str) -> Any:
    """A module of a bridge's transformers model by its name there, out of the bridge's wrappers."""
    module = root
    for part in name.split("."):
        while isinstance(wrapped := module._modules.get("_original_component"), nn.Module):
            module = wrapped
        inner = module._modules.get(part)
        if inner is None:
            raise ModelError(f"model: it has no layer {name!r}. Load the model that the neurons were made for.")
        module = inner
    while isinstance(wrapped := module._modules.get("_original_component"), nn.Module):
        module = wrapped
    return module
