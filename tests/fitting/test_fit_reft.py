"""ReFT-r1 pinned to its definition (Wu et al. 2025, arXiv 2501.17148), written out token by token on plain transformers."""

import oracles
import pytest
import torch
from helpers import random_triplets

import psr_lens as psr
from psr_lens.fitting import reft_r1 as reft
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.reft_r1 import SPARSITY, ReftR1
from psr_lens.fitting.settings.solvers import as_joint


def settings(**more) -> psr.ReFT:
    return psr.ReFT(**({"layers": 1, "epochs": 5, "batch_size": 4, "learning_rate": 2e-2} | more))


def latents_of(activation: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Mean of the k largest ReLU(h·w), and the other ones."""
    found = sorted((torch.relu(row @ w) for row in activation), key=lambda latent: latent.item(), reverse=True)
    k = min(reft.TOP_K, len(found))
    return torch.stack(found[:k]).sum() / k, found[k:]


def reference(hf, triplets, w: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """−Σ log p of the responses, Σ of the latents that are not among the k largest, and each triplet's strength."""
    surprise, sparsity, strengths = torch.zeros(()), torch.zeros(()), []
    for triplet in triplets:
        start = len(triplet.pair.base_ids) - 1
        seen = {}

        def edit(activation, start=start, seen=seen):
            seen["strength"], seen["others"] = latents_of(activation[start:], w)
            return torch.cat([activation[:start], activation[start:] + seen["strength"] * w])

        scores = oracles.read(hf, (*triplet.pair.base_ids, *triplet.response_ids), {layer: edit}).logits.log_softmax(-1)
        surprise = surprise - sum(scores[start + place, token] for place, token in enumerate(triplet.response_ids))
        sparsity = sparsity + sum(seen["others"])
        strengths.append(seen["strength"].item())
    return surprise, sparsity, strengths


def test_loss_and_gradient_are_those_of_the_definition(tiny, monkeypatch):
    monkeypatch.setattr(reft, "TOP_K", 3)  # so that some latents are left over on short responses
    triplets, config = random_triplets(tiny.model, 5, longest=20), as_joint(settings())
    objective = ReftR1(tiny.model, triplets, Parameters.random(tiny.model, ["blocks.1.hook_resid_post"], config), config)
    [directions] = objective.parameters.trained.values()
    w = directions.detach()[0, 0].clone().requires_grad_()
    found = objective.losses(range(5))
    surprise, sparsity, _ = reference(tiny.hf, triplets, w, 1)
    torch.testing.assert_close(found.error, surprise, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.penalty, sparsity, rtol=1e-4, atol=1e-4)
    assert sparsity > 0
    [mine] = torch.autograd.grad(found.error + SPARSITY * found.penalty, [directions])
    [theirs] = torch.autograd.grad(surprise + SPARSITY * sparsity, [w])
    torch.testing.assert_close(mine[0, 0], theirs, rtol=1e-3, atol=1e-4)


def test_the_result_is_constant_steering_with_the_strength_of_training(tiny):
    triplets = random_triplets(tiny.model, 5, longest=20)
    fitted = psr.fit(tiny.model, triplets, settings())
    assert fitted.method == "S-ReFT-r1"
    [(name, site)] = fitted.sites.items()
    assert name == "blocks.1.hook_resid_post"
    assert site.rule == "constant"
    assert site.directions.norm().item() == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        strengths = reference(tiny.hf, triplets, site.directions[0], 1)[2]
    assert site.bias.item() == pytest.approx(sum(strengths) / 5, rel=1e-4)


@pytest.mark.parametrize("more", [{}, {"layers": "all"}, {"hook": "z"}, {"span": "QR", "hook": "mlp_out"}], ids=str)
def test_training_makes_the_responses_likelier(tiny_llama, more):
    fitted = psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 6), settings(epochs=15, **more))
    assert fitted.curve.train[-1] < fitted.curve.train[0] - 0.01
    for site in fitted.sites.values():
        torch.testing.assert_close(site.directions.norm(dim=-1), torch.ones(site.directions.shape[:-1]))
