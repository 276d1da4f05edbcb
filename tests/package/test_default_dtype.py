"""`torch.set_default_dtype(torch.float64)`, as scientific notebooks have it, changes no result of a float32 model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import pairs_of, random_replacement, random_triplets

import psr_lens as psr


def _sites(replacement: psr.Replacement) -> list[torch.Tensor]:
    return [part for site in replacement.sites.values() for part in (site.directions, site.weights, site.bias)]


def _steered(model: Any, prompt: list[int]) -> list[torch.Tensor]:
    with random_replacement(model).steer(model, torch.tensor([0.5])), torch.no_grad():
        return [model(torch.tensor([prompt]))]


CASES: dict[str, Callable[[Any, Any], list[torch.Tensor]]] = {
    "capture": lambda m, t: list(psr.capture(m, t, "all").deltas.values()),
    "statistics": lambda m, t: [
        torch.tensor(each.quantile(0.5)) for each in psr.capture(m, t, to=psr.Statistics(rank=2)).overall.values()
    ],
    "difference in means": lambda m, t: _sites(psr.fit(m, t, psr.DiM())),
    "sequential": lambda m, t: _sites(psr.fit(m, t, psr.Sequential(rank=2, regression_steps=2, polish=psr.Polish(epochs=1)))),
    "joint": lambda m, t: _sites(psr.fit(m, t, psr.Joint(epochs=1, validation=0.3, learned_offset=True))),
    "ReFT": lambda m, t: _sites(psr.fit(m, t, psr.ReFT(epochs=1))),
    "neurons": lambda m, t: [
        part
        for each in psr.adapt(m, t, psr.Neurons(rank=2, regression_steps=2)).layers.values()
        for part in (each.read, each.write)
    ],
    "compare": lambda m, t: [psr.compare(m, t, random_replacement(m)).magnitude],
    "attribute": lambda m, t: [psr.attribute(m, t, by_source=True).sources.share],
    "patch": lambda m, t: [psr.patching.patch(m, t, layers=[1]).values],
    "ablate": lambda m, t: [psr.patching.ablate(m, t, random_replacement(m)).values],
    "cosines": lambda m, t: [psr.cosines({"R": random_replacement(m)}).matrix],
    "steer": lambda m, t: _steered(m, list(t[0].pair.base_ids)),
    "generate": lambda m, t: [
        torch.tensor(each.ids)
        for each in psr.generate(m, pairs_of(m, 2), random_replacement(m), sampling=psr.SamplingConfig(max_new_tokens=4))
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_the_usual_default(tiny_llama, case):
    triplets = random_triplets(tiny_llama.model, 4)
    wanted = CASES[case](tiny_llama.model, triplets)
    torch.set_default_dtype(torch.float64)
    try:
        found = CASES[case](tiny_llama.model, triplets)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(found) == len(wanted) > 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)
