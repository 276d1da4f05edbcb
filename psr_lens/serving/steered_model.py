"""Gates on the modules of a vLLM model, and the strengths that they read, filled in for each batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psr_lens.errors import InputError, ModelError
from psr_lens.replacement.attach_to_transformers import LAYOUTS, check_attachable, layer_and_point
from psr_lens.serving.gates import Gate
from psr_lens.serving.requests import IN_FORCE, asks_to_be_steered
from psr_lens.serving.served import Served

_BY_TRANSFORMERS: Final = "TransformersForCausalLM"
"""vLLM's class for architectures that it has no code for: `model` is the transformers model, with vLLM's attention."""
ARCHITECTURES: Final = {
    **{
        name: name
        for name in (
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
            "Gemma2ForCausalLM",
            "Gemma3ForCausalLM",
            "Phi3ForCausalLM",
            "GPT2LMHeadModel",
        )
    },
    **dict.fromkeys(("GPTNeoXForCausalLM", "Olmo2ForCausalLM"), _BY_TRANSFORMERS),
}
"""Architectures that were compared with transformers token by token, and the class of vLLM's that runs each. Modules in a layer have the
names that transformers gives them."""
_NEVER: Final = np.iinfo(np.int64).max


class TokenStrengths:
    """The strength of every replacement at every token of a batch: one buffer for the life of the engine, as compiled graphs need it."""

    def __init__(self, served: Served, tokens: int, device: torch.device) -> None:
        """Allocate the buffer.

        Args:
            served: The replacements; each has a column.
            tokens: The largest number of tokens in a batch.
            device: Where the model is.
        """
        self._columns = {digest: column for column, digest in enumerate(served.replacements)}
        self.on_device: Float[Tensor, "token replacement"] = torch.zeros(tokens, len(self._columns), device=device)
        """What the gates read."""
        at_cpu = device.type == "cpu"
        self._staged = self.on_device if at_cpu else torch.zeros(tokens, len(self._columns), pin_memory=True)
        self._rows = self._staged.numpy()
        self._requests: dict[str, tuple[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        self._filled = 0

    def fill(
        self, requests: Sequence[tuple[str, Any]], computed: Int[np.ndarray, " request"], scheduled: Int[np.ndarray, " request"]
    ) -> None:
        """Set the strengths of a batch, in which the tokens of each request follow each other.

        Args:
            requests: The name and the `SamplingParams` of each request.
            computed: Number of tokens of each request that were computed in earlier batches: the position of its first token here.
            scheduled: Number of its tokens in this batch.
        """
        self._requests = {name: self._known(name, params) for name, params in requests}
        steered = [vectors for _, vectors in self._requests.values()]
        total = int(scheduled.sum())
        if not any(strengths.any() for strengths, _, _ in steered):
            self._write(np.zeros((total, len(self._columns)), np.float32) if self._filled else None, total)
            return
        of_token = np.repeat(np.arange(len(requests)), scheduled)
        begins = np.cumsum(scheduled) - scheduled
        positions = (computed - begins)[of_token] + np.arange(total)
        strengths, starts, ends = (np.stack([each[part] for each in steered])[of_token] for part in range(3))
        self._write(np.where((positions[:, None] >= starts) & (positions[:, None] < ends), strengths, np.float32(0)), total)

    def _known(self, name: str, params: Any) -> tuple[Any, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Strength, first steered position and the position after the last, of each replacement; made once for each request."""
        known = self._requests.get(name)
        asked = getattr(params, "extra_args", None) or {}
        if IN_FORCE not in asked and asks_to_be_steered(asked):
            raise ModelError(
                "vllm: a request that asks to be steered has not been checked. Let it come through vLLM's own front end."
            )
        if known is not None and known[0] is params:
            return known
        strengths = np.zeros(len(self._columns), np.float32)
        starts, ends = np.zeros(len(self._columns), np.int64), np.full(len(self._columns), _NEVER)
        for digest, strength, start, last_only in asked.get(IN_FORCE, ()):
            column = self._columns[digest]
            strengths[column], starts[column] = strength, start
            if last_only:
                ends[column] = start + 1
        return params, (strengths, starts, ends)

    def _write(self, rows: np.ndarray | None, total: int) -> None:
        if rows is None:
            return
        stale = max(self._filled, total)
        self._rows[:total] = rows
        self._rows[total:stale] = 0
        self._filled = total if rows.any() else 0
        if self._staged is not self.on_device:
            self.on_device[:stale].copy_(self._staged[:stale], non_blocking=True)


def check_model(name: str, config: Any, served: Served) -> None:
    """Refuse a model that cannot be steered as the replacements want.

    Args:
        name: Name of the model's class in transformers.
        config: Its transformers config.
        served: What steers.

    Raises:
        InputError: the model is of another architecture.
        ArtifactError: a replacement was made for a model of other sizes, or acts where no gate can be put.
    """
    if name not in ARCHITECTURES:
        raise InputError(
            "model", name, f"one of {', '.join(ARCHITECTURES)}", "Other architectures are steered by `steer` or `attach`."
        )
    for replacement in served.replacements.values():
        check_attachable(replacement, config, name)


def put_gates(model: nn.Module, name: str, served: Served, strengths: Tensor) -> None:
    """Put a gate on each module that corresponds to a hook point where a replacement acts, before the model is compiled.

    Args:
        model: The loaded model.
        name: Name of its class in transformers; `check_model` has passed.
        served: What steers.
        strengths: The buffer of `TokenStrengths`.

    Raises:
        ModelError: vLLM runs this architecture with another class than the one that was tried.
    """
    found, expected = type(model).__name__, ARCHITECTURES[name]
    if found != expected:
        raise ModelError(
            f"vllm: {name} is run by {found}, where replacements were tried with {expected} alone. Install a version that was tried."
        )
    layout = LAYOUTS[name]
    layers = model.get_submodule("model.layers" if found == _BY_TRANSFORMERS else layout.layers)
    for hook, sites in served.sites().items():
        index, point = layer_and_point(hook)
        layer: nn.Module = layers[index]  # type: ignore[index]
        gate = Gate(sites, strengths, strengths.device)
        if point == "hook_resid_post":
            _put(layer, gate)
        elif point == "attn.hook_z":
            _put(layer.get_submodule(layout.projection), gate, before=True)
        else:
            _put(layer.get_submodule(layout.attention if point == "hook_attn_out" else layout.mlp), gate)


def _put(module: nn.Module, gate: Gate, *, before: bool = False) -> None:
    """Make the gate a part of the module, where a compiled graph finds it as it finds the weights."""
    if before:
        module.psr_gate_before = gate
        module.register_forward_pre_hook(_on_input)
    else:
        module.psr_gate = gate
        module.register_forward_hook(_on_output)


def _on_output(module: Any, arguments: tuple[Any, ...], output: Any) -> Any:
    if not isinstance(output, tuple):
        return _steered(output, output.flatten(0, -2), module.psr_gate)
    hidden, residual, *others = output  # a layer's two summands, which the next layer adds up; None beside an attention's output
    arriving = hidden if residual is None else hidden + residual
    return (_steered(hidden, arriving.flatten(0, -2), module.psr_gate), residual, *others)


def _on_input(module: Any, arguments: tuple[Any, ...]) -> Any:
    given, *others = arguments
    gate = module.psr_gate_before
    heads = given.flatten(0, -2).unflatten(-1, (gate.directions.shape[0], gate.directions.shape[-1]))
    return (_steered(given, heads, gate), *others)


def _steered(given: Tensor, arriving: Tensor, gate: Gate) -> Tensor:
    """`arriving` begins with the tokens; what is given may have all tokens in a batch of one, as transformers' modules take them."""
    total: Tensor = given.to(torch.float32) + gate(arriving).reshape(given.shape)
    return total.to(given.dtype)
