"""Random neurons for the MLPs of any family that can get more, and plain transformers with their equations written out."""

from contextlib import contextmanager

import oracles
import torch

from psr_lens.models import ExtraNeurons, fingerprint
from psr_lens.replacement import AddedNeurons

GATED = ("llama", "llama-gqa", "mistral", "qwen2", "qwen3")
UNGATED = ("gpt2", "gpt-neox")
FAMILIES = GATED + UNGATED
"""Families whose MLPs can get more neurons."""


def random_neurons(case, *, layers=(0, 2), counts=(3, 2), size: float = 0.3, seed: int = 0) -> AddedNeurons:
    """Neurons with random weights in some layers, of different numbers."""
    generator, width = torch.Generator().manual_seed(seed), case.model.cfg.d_model

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32) * size

    gated = case.family in GATED
    made = {
        layer: ExtraNeurons(
            drawn(count, width), drawn(count, width), None if gated else drawn(count), drawn(count, width) if gated else None
        )
        for layer, count in zip(layers, counts, strict=True)
    }
    settings = {"instructions": ["talk like a | pirate ."]}
    return AddedNeurons(made, fingerprint(case.model), settings)


def activation(hf):
    """The MLPs' activation function."""
    return oracles.blocks(hf)[0].mlp.act_fn if hasattr(oracles.blocks(hf)[0].mlp, "act_fn") else oracles.blocks(hf)[0].mlp.act


@contextmanager
def by_the_equation(hf, neurons: AddedNeurons, alpha: float = 1.0):
    """Plain transformers, with hooks that add what each neuron computes, one after the other."""
    act = activation(hf)

    def hook_of(each: ExtraNeurons):
        def hook(module, arguments, output):
            for index in range(each.count):
                value = arguments[0] @ each.read[index]
                if each.bias is not None:
                    value = value + each.bias[index]
                value = act(value)
                if each.up is not None:
                    value = value * (arguments[0] @ each.up[index])
                output = output + alpha * value[..., None] * each.write[index]
            return output

        return hook

    handles = [oracles.blocks(hf)[layer].mlp.register_forward_hook(hook_of(each)) for layer, each in neurons.layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
