"""Independent answers to compare with: plain transformers, one unpadded sequence at a time, with PyTorch's own hooks.

Nothing here uses psr_lens or TransformerLens for what it computes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

Edit = Callable[[Tensor], Tensor]
"""Takes a block's output `[position, d_model]` and gives what the model is to go on with."""


class Reading(NamedTuple):
    """One sequence as transformers reads it."""

    residuals: list[Tensor]
    """Each block's output, as the next block gets it, `[position, d_model]`."""
    logits: Tensor
    """`[position, d_vocab]`"""


def transformer(folder: Path) -> Any:
    """The folder as transformers loads it, anew at each call, with eager attention: transformers 5.17 fuses Gemma-2's without its cap."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return hf.eval().requires_grad_(False)


def blocks(hf: Any) -> Any:
    """The list of transformer blocks."""
    if hasattr(hf, "gpt_neox"):
        return hf.gpt_neox.layers
    if hasattr(hf, "backbone"):
        return hf.backbone.layers
    return hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers


def read(hf: Any, ids: Sequence[int], edits: Mapping[int, Edit] | None = None) -> Reading:
    """Read one sequence, with the outputs of some blocks edited; gradients flow if the edits have any."""
    residuals: list[Tensor] = []

    def hook_of(layer: int) -> Callable:
        def hook(module: Any, arguments: Any, output: Any) -> Any:
            residual = output[0] if isinstance(output, tuple) else output
            if edits and layer in edits:
                residual = edits[layer](residual[0])[None]
            residuals.append(residual[0])
            return (residual, *output[1:]) if isinstance(output, tuple) else residual

        return hook

    handles = [block.register_forward_hook(hook_of(layer)) for layer, block in enumerate(blocks(hf))]
    try:
        logits = hf(torch.tensor([list(ids)])).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return Reading(residuals, logits)


def hidden_states(hf: Any, ids: Sequence[int]) -> tuple[Tensor, ...]:
    """transformers' own `output_hidden_states`: `[l]` is what block `l` gets; the last has been through the final norm."""
    with torch.no_grad():
        states = hf(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
    return tuple(state[0] for state in states)


def steering(site: Any, alpha: float, start: int) -> Edit:
    """Equations 7 and 8 written out: A + α · ReLU(A·w + b) · z from position `start` on."""

    def edit(activation: Tensor) -> Tensor:
        rows = []
        for position, row in enumerate(activation):
            for w, b, z in zip(site.weights, site.bias, site.directions, strict=True):
                if position >= start:
                    row = row + alpha * torch.relu(activation[position] @ w + b) * z
            rows.append(row)
        return torch.stack(rows)

    return edit


def layer_edits(sites: Mapping[str, Any], alpha: float, start: int) -> dict[int, Edit]:
    """One edit a layer from a replacement's sites at `blocks.N.hook_resid_post`."""
    return {int(name.split(".")[1]): steering(site, alpha, start) for name, site in sites.items()}


def steered_logits(hf: Any, ids: Sequence[int], sites: Mapping[str, Any], alpha: float, start: int) -> Tensor:
    """What the model says when a replacement's sites act from position `start` on, `[position, d_vocab]`."""
    with torch.no_grad():
        return read(hf, ids, layer_edits(sites, alpha, start)).logits


def greedy(hf: Any, prompt: Sequence[int], steps: int, edits: Mapping[int, Edit] | None = None) -> list[int]:
    """The likeliest tokens after a prompt, by reading the whole sequence again at every step."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(read(hf, ids, edits).logits[-1].argmax()))
    return ids[len(prompt) :]


# --- any rule, at any point -------------------------------------------------------------------------------------------------


def coefficient(rule: str, row: Tensor, w: Tensor, b: Tensor, z: Tensor) -> Tensor:
    """One direction's λ on one token, by the rule's definition."""
    if rule == "relu":
        return torch.clamp(row.dot(w) + b, min=0)
    if rule == "sigmoid":
        return 1 / (1 + torch.exp(-(row.dot(w) + b)))
    if rule == "linear":
        return row.dot(w) + b
    if rule == "projection":
        return b - row.dot(z)
    return b


def added(site: Any, activation: Tensor, alpha: float, start: int, stop: int | None = None) -> Tensor:
    """α·λ(A)·z on the positions from `start` to `stop`, and zeros elsewhere, token by token and head by head."""
    result = torch.zeros_like(activation)
    for position in range(start, len(activation) if stop is None else stop):
        if activation.ndim == 2:
            heads = [(activation[position], site.weights, site.bias, site.directions, result[position])]
        else:
            heads = list(zip(activation[position], site.weights, site.bias, site.directions, result[position], strict=True))
        for row, weights, bias, directions, into in heads:
            for w, b, z in zip(weights, bias, directions, strict=True):
                into += alpha * coefficient(site.rule, row, w, b, z) * z
    return result


def all_added(*acting: tuple) -> Edit:
    """Several sites at one point: each `(site, alpha, start[, stop])` reads what arrives, and what they add is summed."""
    return lambda activation: activation + sum(added(each[0], activation, *each[1:]) for each in acting)


@contextmanager
def edited(hf: Any, edits: Mapping[str, Edit]) -> Iterator[None]:
    """The model with activations edited at points that have TransformerLens's names, by PyTorch's own hooks on its modules."""

    def after(edit: Edit) -> Callable:
        def hook(module: Any, arguments: Any, output: Any) -> Any:
            return (edit(output[0][0])[None], *output[1:]) if isinstance(output, tuple) else edit(output[0])[None]

        return hook

    def before(edit: Edit, heads: int) -> Callable:
        return lambda module, arguments: (edit(arguments[0][0].unflatten(-1, (heads, -1))).flatten(-2)[None], *arguments[1:])

    handles = []
    for name, edit in edits.items():
        layer, point = int(name.split(".")[1]), name.split(".", 2)[2]
        block = blocks(hf)[layer]
        attention = block.attn if hasattr(block, "attn") else block.self_attn
        if point == "attn.hook_z":
            output = attention.c_proj if hasattr(attention, "c_proj") else attention.o_proj
            handles.append(output.register_forward_pre_hook(before(edit, hf.config.num_attention_heads)))
        else:
            module = {"hook_resid_post": block, "hook_attn_out": attention, "hook_mlp_out": block.mlp}[point]
            handles.append(module.register_forward_hook(after(edit)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def edited_logits(hf: Any, ids: Sequence[int], edits: Mapping[str, Edit]) -> Tensor:
    """What the model says with its activations edited, `[position, d_vocab]`."""
    with torch.no_grad(), edited(hf, edits):
        return hf(torch.tensor([list(ids)])).logits[0]


def edited_greedy(hf: Any, prompt: Sequence[int], steps: int, edits: Mapping[str, Edit]) -> list[int]:
    """The likeliest tokens after a prompt with activations edited, by reading the whole sequence again at every step."""
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(edited_logits(hf, ids, edits)[-1].argmax()))
    return ids[len(prompt) :]
