"""All objectives against plain transformers with PyTorch's own hooks: losses and gradients, at every kind of hook point and rule."""

from dataclasses import replace

import oracles
import pytest
import torch
from helpers import LAYERS, random_triplets

import psr_lens as psr
from psr_lens.fitting.gradient_descent.objective import Divergence, Imitation, Likelihood
from psr_lens.fitting.gradient_descent.parameters import START_OFFSET, Parameters
from psr_lens.replacement import Site

KINDS = ("resid_post", "attn_out", "mlp_out", "z")
HEADS, HEAD_WIDTH = 4, 8


def start_of(model, config, seed=0) -> Parameters:
    """Parameters that change every layer visibly."""
    kind = "attn.hook_z" if config.hook == "z" else f"hook_{config.hook}"
    parameters = Parameters.random(model, [f"blocks.{layer}.{kind}" for layer in range(LAYERS)], config)
    generator = torch.Generator().manual_seed(seed)
    for tensor in parameters.trained.values():
        tensor.detach().add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return parameters


def added(site, activation: torch.Tensor, strength) -> torch.Tensor:
    """What a site adds to `[position, width]`, written out per direction."""
    total = torch.zeros_like(activation)
    for w, b, z in zip(site.weights, site.bias, site.directions, strict=True):
        read = activation @ w + b
        gate = {
            "relu": read.clamp(min=0),
            "sigmoid": 1 / (1 + (-read).exp()),
            "linear": read,
            "constant": b.expand(len(activation)),
        }[site.rule]
        total = total + strength * gate[:, None] * z
    return total


def edit_of(site, strength, start: int):
    """An edit of `[position, width]` from `start` on; every head by itself where sites have heads."""

    def edit(activation: torch.Tensor) -> torch.Tensor:
        if site.directions.ndim == 3:
            heads = activation.view(-1, HEADS, HEAD_WIDTH)
            ones = [Site(site.directions[h], site.weights[h], site.bias[h], site.rule) for h in range(HEADS)]
            change = torch.stack([added(one, heads[:, h], strength) for h, one in enumerate(ones)], 1).flatten(1)
        else:
            change = added(site, activation, strength)
        return torch.cat([activation[:start], activation[start:] + change[start:]])

    return edit


def read_with(hf, ids, kind: str, edits) -> oracles.Reading:
    """Read a sequence with a part of each block edited: its output, its attention's, its MLP's, or what its heads hand to `W_O`."""
    if kind == "resid_post":
        return oracles.read(hf, ids, dict(enumerate(edits)))
    handles = []
    for block, edit in zip(oracles.blocks(hf), edits, strict=True):
        attention = getattr(block, "attn", None) or block.self_attn
        projection = getattr(attention, "c_proj", None) or attention.o_proj
        if kind == "z":
            handles.append(projection.register_forward_pre_hook(lambda _, given, edit=edit: (edit(given[0][0])[None],)))
        elif kind == "attn_out":
            handles.append(attention.register_forward_hook(lambda _, __, out, edit=edit: (edit(out[0][0])[None], *out[1:])))
        else:
            handles.append(block.mlp.register_forward_hook(lambda _, __, out, edit=edit: edit(out[0])[None]))
    try:
        return oracles.read(hf, ids)
    finally:
        for handle in handles:
            handle.remove()


def reference(hf, triplets, parameters, config) -> torch.Tensor:
    """The error of a batch, summed, one triplet at a time."""
    total = torch.zeros(())
    for triplet in triplets:
        base, prompted, response = triplet.pair.base_ids, triplet.pair.prompted_ids, triplet.response_ids
        kept = 1 if config.span == "R" else triplet.pair.question_length
        strength = triplet.trait / 100 + parameters.offset
        edits = [edit_of(site, strength, len(base) - kept) for site in parameters.sites().values()]
        found = read_with(hf, (*base, *response), config.hook, edits)
        if config.objective == "ll":
            scores = found.logits.log_softmax(-1)
            for place, token in enumerate(response):
                total = total - scores[len(base) - 1 + place, token]
            continue
        with torch.no_grad():
            wanted = oracles.read(hf, (*prompted, *response))
        if config.objective == "kl":
            for place in range(len(response)):
                p = wanted.logits[len(prompted) - 1 + place].softmax(-1)
                q = found.logits[len(base) - 1 + place].softmax(-1)
                total = total + (p * (p / q).log()).sum()
        else:
            for mine, theirs in zip(found.residuals, wanted.residuals, strict=True):
                total = total + (mine[len(base) - kept :] - theirs[len(prompted) - kept :]).square().sum()
    return total


def compare(case, config) -> None:
    triplets, parameters = random_triplets(case.model, 3), start_of(case.model, config)
    indices = range(len(triplets))
    objective = {"mse": Imitation, "ll": Likelihood, "kl": Divergence}[config.objective](case.model, triplets, parameters, config)
    objective.prepare(indices)
    found, wanted = objective.losses(indices).error, reference(case.hf, triplets, parameters, config)
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-4)
    tensors = list(parameters.trained.values())
    for mine, theirs in zip(*(torch.autograd.grad(loss, tensors) for loss in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
        assert theirs.any()


@pytest.mark.parametrize("objective", ["mse", "ll", "kl"])
@pytest.mark.parametrize("hook", KINDS)
def test_losses_and_gradients_at_every_kind_of_hook_point(tiny, hook, objective):
    compare(tiny, psr.Joint(hook=hook, objective=objective, rank=2, learned_offset=True))


@pytest.mark.parametrize("objective", ["mse", "ll", "kl"])
@pytest.mark.parametrize(
    "settings",
    [{"rule": "sigmoid"}, {"rule": "linear"}, {"rule": "constant"}, {"span": "QR"}, {"rule": "constant", "hook": "z"}],
    ids=str,
)
def test_losses_and_gradients_of_every_rule_and_span(tiny_llama, settings, objective):
    compare(tiny_llama, psr.Joint(objective=objective, **settings))


def test_under_the_constant_rule_only_the_vector_is_trained(tiny_llama):
    assert list(start_of(tiny_llama.model, psr.Joint(rule="constant")).trained) == ["directions"]
    triplets = random_triplets(tiny_llama.model, 4)
    fitted = psr.fit(tiny_llama.model, triplets, psr.Joint(rule="constant", epochs=2, learning_rate=1e-2))
    assert fitted.method == "A-Const MSE"
    for site in fitted.sites.values():
        assert site.rule == "constant"
        assert site.bias.tolist() == [1.0]
        assert not site.weights.any()


@pytest.mark.parametrize("objective", ["mse", "ll", "kl"])
@pytest.mark.parametrize("rule", ["relu", "sigmoid", "constant"])
def test_every_rule_learns(tiny_llama, rule, objective):
    config = psr.Joint(rule=rule, objective=objective, epochs=15, batch_size=3, learning_rate=2e-2)
    losses = psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 6), config).curve.train
    assert losses[-1] < 0.98 * losses[0]
    assert losses == tuple(sorted(losses, reverse=True))


@pytest.mark.parametrize("hook", KINDS[1:])
def test_every_kind_of_hook_point_can_be_fitted(tiny, hook):
    config = psr.Joint(hook=hook, epochs=6, batch_size=3, learning_rate=2e-2)
    fitted = psr.fit(tiny.model, random_triplets(tiny.model, 6), config)
    assert fitted.curve.train[-1] < fitted.curve.train[0] - 0.003
    width = (HEADS, 1, HEAD_WIDTH) if hook == "z" else (1, 32)
    assert all(site.directions.shape == width for site in fitted.sites.values())


def test_the_offset_turns_the_sign_of_negative_examples(tiny_llama):
    """Half the triplets have the trait; of the others the response was sampled without the instruction's effect: contexts swapped."""
    triplets = random_triplets(tiny_llama.model, 6)
    positive = [replace(triplet, trait=100.0) for triplet in triplets[:3]]
    pairs = [replace(each.pair, base_ids=each.pair.prompted_ids, prompted_ids=each.pair.base_ids) for each in triplets[:3]]
    negative = [psr.Triplet(pair, each.response_ids, "", trait=0.0) for pair, each in zip(pairs, positive, strict=True)]
    settings = {"rule": "constant", "layers": 0, "epochs": 60, "batch_size": 3, "learning_rate": 3e-2}
    fitted = psr.fit(tiny_llama.model, [*positive, *negative], psr.Joint(learned_offset=True, **settings))
    assert -0.8 < fitted.offset < -0.2
    [site] = fitted.sites.values()
    [alone] = psr.fit(tiny_llama.model, positive, psr.Joint(**settings)).sites.values()
    # What is added with the trait, 1 + b_m times z, goes the way of the fit to the positives; without it the other way.
    for trait in (0, 1):
        direction = (trait + fitted.offset) * site.directions[0]
        assert torch.cosine_similarity(direction, alone.directions[0], dim=0) * (1 if trait else -1) > 0.8


def test_the_offset_starts_in_the_middle_of_the_scale_and_stays_at_nought_unless_it_is_wanted(tiny_llama):
    assert start_of(tiny_llama.model, psr.Joint()).offset.item() == 0
    names = ["blocks.0.hook_resid_post"]
    assert Parameters.random(tiny_llama.model, names, psr.Joint(learned_offset=True)).offset.item() == START_OFFSET == -0.5


def test_tokens_that_are_impossible_under_both_prompts_leave_the_divergence_finite(tiny_llama):
    def never(logits):
        return torch.cat([logits[..., :-2], torch.full_like(logits[..., -2:], -torch.inf)], -1)

    triplets, config = random_triplets(tiny_llama.model, 3), psr.Joint(objective="kl")
    objective = Divergence(tiny_llama.model, triplets, start_of(tiny_llama.model, config), config)
    predicted = objective._predicted
    objective._predicted = lambda *given: never(predicted(*given))
    loss = objective.losses(range(3)).error
    gradients = torch.autograd.grad(loss, list(objective.parameters.trained.values()))
    assert loss.isfinite()
    assert loss > 0
    assert all(each.isfinite().all() for each in gradients)


def test_polishing_on_the_divergence_lowers_it_and_is_named(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 6)
    config = psr.Sequential(regression_steps=2, polish=psr.Polish(objective="kl", epochs=4, batch_size=3, learning_rate=1e-2))
    fitted = psr.fit(tiny_llama.model, triplets, config)
    assert fitted.method == "A-PSR KL"
    assert fitted.curve.train[-1] < 0.95 * fitted.curve.train[0]
