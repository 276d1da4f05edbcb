"""Random LoRA adapters, peft's reading of them, and what must be untouched after they were in force."""

import oracles
import torch
from helpers import BACKENDS, LAYERS
from transformers.pytorch_utils import Conv1D

from psr_lens.models import LowRank, fingerprint
from psr_lens.replacement import Adapter

SEQUENCE = (5, 17, 40, 23, 61, 8, 30)
ALL_LINEAR = {"llama": 7 * LAYERS, "llama-gqa": 7 * LAYERS, "gpt2": 4 * LAYERS}
"""Linear layers but the head: q, k, v, o, gate, up and down in each block, or c_attn, c_fc and two c_proj."""

TWO = (("llama-gqa", BACKENDS[0]), ("gpt2", "bridge"))
"""Families and classes of models, for what takes longer."""


def random_adapter(case, *, rank: int = 3, size: float = 0.1, seed: int = 0) -> Adapter:
    """A LoRA with random numbers on every linear layer but the head."""
    generator = torch.Generator().manual_seed(seed)
    layers, transposed = {}, False
    for name, module in case.hf.named_modules():
        if not isinstance(module, torch.nn.Linear | Conv1D) or name == "lm_head":
            continue
        transposed |= isinstance(module, Conv1D)
        out, into = module.weight.T.shape if isinstance(module, Conv1D) else module.weight.shape
        layers[name] = LowRank(
            torch.randn(rank, into, generator=generator) * size, torch.randn(out, rank, generator=generator) * size
        )
    assert len(layers) == ALL_LINEAR[case.family]
    return Adapter(layers, 2.0, fingerprint(case.model), str(case.folder), fan_in_fan_out=transposed)


def adapted_by_peft(case, folder):
    """Plain transformers with the saved adapter in force, as peft loads it."""
    import peft

    return peft.PeftModel.from_pretrained(oracles.transformer(case.folder), folder).eval()


def at_strength(adapted, strength: float):
    """The same with peft's scaling multiplied by a strength."""
    import peft

    for module in adapted.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_scale("default", strength)
    return adapted


def state_of(model):
    """Everything that must be as it was: weights bit for bit, gradients, mode, hooks."""
    weights = {name: (each.detach().clone(), each.requires_grad, each.data_ptr()) for name, each in model.named_parameters()}
    return weights, model.training, sum(len(each._forward_hooks) for each in model.modules())


def assert_untouched(model, before) -> None:
    weights, training, hooks = before
    now, training_now, hooks_now = state_of(model)
    assert (training, hooks) == (training_now, hooks_now)
    assert weights.keys() == now.keys()
    for name, (tensor, gradient, place) in weights.items():
        assert torch.equal(tensor, now[name][0]), name
        assert (gradient, place) == now[name][1:], name
