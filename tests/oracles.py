"""Independent answers to compare with: plain transformers, one unpadded sequence at a time, with PyTorch's own hooks.

Nothing here uses psr_lens or TransformerLens for what it computes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
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


@cache
def transformer(folder: Path) -> Any:
    """The folder as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def blocks(hf: Any) -> Any:
    """The list of transformer blocks."""
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
