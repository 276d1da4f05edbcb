"""What a fit costs: its forward passes, and its wall time on a large model with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from _models import GPT2_SMALL, large_on_gpu, machine, random_gpt2, random_triplets

import psr_lens as psr
from psr_lens.models import HookedModel


@contextmanager
def counted_passes(model: HookedModel, tokens: int) -> Iterator[Callable[[], float]]:
    """Forward passes over the training data within the block: tokens that entered the first layer, divided by those of the data."""
    entered = [0]

    def count(activation: torch.Tensor, hook: Any) -> None:
        entered[0] += activation.shape[0] * activation.shape[1]

    with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", count)]):
        yield lambda: entered[0] / tokens


def large_model(gpu: bool) -> dict[str, Any]:
    """Wall time of an A-PSR fit on a large model with random weights, by the sequential solver and as in the paper."""
    model = large_on_gpu() if gpu else random_gpt2(GPT2_SMALL)
    triplets = random_triplets(model.cfg.d_vocab, 64 if gpu else 16)
    tokens = sum(len(triplet.pair.base_ids) + len(triplet.response_ids) for triplet in triplets)
    found: dict[str, Any] = {"machine": machine("cuda" if gpu else "cpu"), "triplets": len(triplets), "tokens": tokens}
    if gpu:
        psr.fit(model, triplets[:2], psr.Sequential(regression_steps=1))  # warm-up
    for name, config in (("sequential", psr.Sequential()), ("joint", psr.Joint(batch_size=8))):
        with counted_passes(model, tokens) as passes:
            began, began_cpu = time.perf_counter(), time.process_time()
            psr.fit(model, triplets, config)
            took = {"seconds": time.perf_counter() - began, "CPU seconds": time.process_time() - began_cpu}
            found[name] = took | {"forward passes": passes()}
    ratios = {f"ratio of {unit}": found["joint"][unit] / found["sequential"][unit] for unit in ("seconds", "CPU seconds")}
    return found | ratios  # CPU seconds do not count other processes of a busy machine
