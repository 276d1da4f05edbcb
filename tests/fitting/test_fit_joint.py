"""The paper's solver against a slow reference: one triplet at a time, on plain transformers, as METHOD describes it.

Heyman & Vandeputte 2026: Σ_l mean ‖A_{l|AS} − A_{l|PS}‖² over the first steered layer and all later ones, normalised by the unsteered
error, plus 0.1 · max(0, 1 − Σ_i λ_i) for every steered layer; α is the trait score; AdamW with a linear decay to 0.
"""

from dataclasses import replace

import oracles
import pytest
import torch
from helpers import LAYERS, WIDTH, assert_unchanged, random_replacement, random_triplets, relative_error, state_of

import psr_lens as psr
from psr_lens.errors import FitError
from psr_lens.fitting.gradient_descent import objective
from psr_lens.fitting.gradient_descent.objective import Imitation
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.joint import polish
from psr_lens.replacement import Replacement, Site

PARTS = ("directions", "weights", "bias")


def reference_losses(hf, triplets, sites: dict[int, Site], span: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared error a token, summed over layers, and the regulariser of a batch."""
    measured = range(min(sites), LAYERS)
    error, dead, tokens = torch.zeros(()), torch.zeros(()), 0
    for triplet in triplets:
        kept = 1 if span == "R" else triplet.pair.question_length
        base, prompted = triplet.pair.base_ids, triplet.pair.prompted_ids
        with torch.no_grad():
            wanted = oracles.read(hf, (*prompted, *triplet.response_ids)).residuals
        fired: dict[int, torch.Tensor] = {}

        def edit_of(layer, start, alpha, fired=fired):
            def edit(activation):
                z, w, b = (getattr(sites[layer], part) for part in PARTS)
                strengths = torch.relu(activation[start:] @ w.T + b)
                fired[layer] = strengths.sum(0)
                return torch.cat([activation[:start], activation[start:] + alpha * strengths @ z])

            return edit

        edits = {layer: edit_of(layer, len(base) - kept, triplet.trait / 100) for layer in sites}
        found = oracles.read(hf, (*base, *triplet.response_ids), edits).residuals
        for layer in measured:
            error = error + (found[layer][len(base) - kept :] - wanted[layer][len(prompted) - kept :]).square().sum()
        dead = dead + sum(torch.relu(1 - fired[layer]).sum() for layer in sites)
        tokens += kept + len(triplet.response_ids)
    return error / tokens, dead / len(triplets)


def trainable(sites: dict[str, Site]) -> list[Site]:
    return [Site(*(getattr(site, part).clone().requires_grad_() for part in PARTS), site.rule) for site in sites.values()]


def reference_fit(hf, triplets, sites: dict[int, Site], config) -> dict[int, Site]:
    """Full-batch training; a batch size as large as the data, so that the shuffling does not matter."""
    nothing = {
        layer: Site(torch.zeros(1, WIDTH), torch.zeros(1, WIDTH), torch.zeros(1), "relu") for layer in (min(sites), max(sites))
    }
    scale = reference_losses(hf, triplets, nothing, config.span)[0]
    parameters = [getattr(site, part) for site in sites.values() for part in PARTS]
    optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    for epoch in range(config.epochs):
        optimiser.param_groups[0]["lr"] = config.learning_rate * (1 - epoch / config.epochs)
        error, dead = reference_losses(hf, triplets, sites, config.span)
        loss = (error / scale if config.normalise else error) + config.regulariser * dead
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return sites


@pytest.mark.parametrize("span", ["R", "QR"])
@pytest.mark.parametrize(("layers", "rank"), [([0, 1, 2], 1), ([1], 1), ([0, 2], 3)])
def test_the_loss_is_that_of_the_reference(tiny, span, layers, rank):
    triplets = random_triplets(tiny.model, 4)
    sites = random_replacement(tiny.model, layers=layers, rank=rank, size=0.1).sites
    config = psr.Joint(span=span, layers=layers, rank=rank)
    imitation = Imitation(tiny.model, triplets, Parameters.of(tiny.model, sites, config), config)
    imitation.prepare(range(4))
    found = imitation.losses(range(4))
    wanted = reference_losses(tiny.hf, triplets, {int(name.split(".")[1]): site for name, site in sites.items()}, span)
    torch.testing.assert_close(found.error / imitation.count(range(4)), wanted[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.penalty / 4, wanted[1], atol=1e-4, rtol=1e-4)
    assert wanted[0] > 1.0


def test_the_targets_are_the_same_held_in_memory_or_computed_anew(tiny, monkeypatch):
    triplets, config = random_triplets(tiny.model, 5), psr.Joint(layers=[0, 2], epochs=2, batch_size=2)
    held = psr.fit(tiny.model, triplets, config)
    monkeypatch.setattr(objective, "HELD_BYTES", 0)
    anew = psr.fit(tiny.model, triplets, config)
    assert anew.curve.train == pytest.approx(held.curve.train, abs=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"normalise": False, "regulariser": 0.0}, {"layers": 1, "span": "QR", "rank": 2}], ids=str
)
def test_training_goes_the_way_of_the_reference(tiny, settings):
    triplets = random_triplets(tiny.model, 3)
    config = psr.Joint(epochs=4, batch_size=8, learning_rate=1e-2, **settings)
    layers = [config.layers] if isinstance(config.layers, int) else range(LAYERS)
    names = [f"blocks.{layer}.hook_resid_post" for layer in layers]
    sites = dict(zip(layers, trainable(Parameters.random(tiny.model, names, config).finished()), strict=True))
    wanted = reference_fit(tiny.hf, triplets, sites, config)
    found = psr.fit(tiny.model, triplets, config).sites
    assert list(found) == [f"blocks.{layer}.hook_resid_post" for layer in layers]
    for layer, site in zip(layers, found.values(), strict=True):
        for part in PARTS:
            torch.testing.assert_close(getattr(site, part), getattr(wanted[layer], part).detach(), atol=2e-4, rtol=0)


def test_probes_start_small_and_offsets_at_zero(tiny_llama):
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)]
    start = Parameters.random(tiny_llama.model, names, psr.Joint(rank=20))
    assert start.weights.std().item() == pytest.approx(0.01, rel=0.05)
    assert start.directions.std().item() == pytest.approx(0.01, rel=0.05)
    assert not start.bias.any()
    assert {site.rule for site in start.sites().values()} == {"relu"}


def test_polishing_goes_on_from_what_the_solver_found(tiny_llama):
    triplets = [replace(each, trait=100.0) for each in random_triplets(tiny_llama.model, 6)]
    config = psr.Sequential(regression_steps=20, polish=psr.Polish(epochs=6, learning_rate=3e-3, batch_size=3))
    plain = psr.fit(tiny_llama.model, triplets, psr.Sequential(regression_steps=20))
    polished = psr.fit(tiny_llama.model, triplets, config)
    assert relative_error(tiny_llama.model, triplets, polished) < relative_error(tiny_llama.model, triplets, plain) - 0.01
    assert len(polished.curve.train) == 6
    assert polished.curve.train[0] < 0.9  # a random start has 1
    again = polish(tiny_llama.model, triplets, list(plain.sites), plain.sites, config)
    assert all(torch.equal(again.sites[name].weights, site.weights) for name, site in polished.sites.items())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"layers": "all"}, {"layers": 1}, {"layers": [0, 2], "rank": 2, "span": "QR"}], ids=str)
def test_training_comes_closer_to_the_prompt(tiny, settings):
    triplets = random_triplets(tiny.model, 6)
    config = psr.Joint(epochs=40, learning_rate=2e-2, **settings)
    fitted = psr.fit(tiny.model, triplets, config)
    assert relative_error(tiny.model, triplets, fitted) < 0.97


def test_the_same_seed_gives_the_same_replacement_and_another_seed_another(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 5)
    first, again, other = (psr.fit(tiny_llama.model, triplets, psr.Joint(epochs=2, batch_size=2, seed=seed)) for seed in (1, 1, 2))
    for name, site in first.sites.items():
        for part in PARTS:
            assert torch.equal(getattr(site, part), getattr(again.sites[name], part))
            assert part == "bias" or not torch.equal(getattr(site, part), getattr(other.sites[name], part))


def test_every_epoch_sees_every_triplet_in_another_order(tiny_llama, monkeypatch):
    seen, losses = [], Imitation.losses

    def spy(self, indices):
        seen.append(list(indices))
        return losses(self, indices)

    monkeypatch.setattr(Imitation, "losses", spy)
    config = psr.Joint(epochs=3, batch_size=2)
    psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 5), config)
    assert [len(batch) for batch in seen] == [2, 2, 1] * 3
    orders = [[index for batch in seen[epoch * 3 : epoch * 3 + 3] for index in batch] for epoch in range(3)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_the_model_is_left_as_it_was(fresh):
    fresh.model.train(True)
    fresh.model.requires_grad_(True)
    before = state_of(fresh.model)
    psr.fit(fresh.model, random_triplets(fresh.model, 3), psr.Joint(epochs=2))
    assert_unchanged(fresh.model, before)


def test_gradients_turned_off_outside_do_not_matter(tiny_llama):
    triplets, config = random_triplets(tiny_llama.model, 3), psr.Joint(epochs=2)
    wanted = psr.fit(tiny_llama.model, triplets, config)
    with torch.no_grad():
        found = psr.fit(tiny_llama.model, triplets, config)
    for name, site in wanted.sites.items():
        assert torch.equal(found.sites[name].weights, site.weights)
        assert not found.sites[name].weights.requires_grad


def test_a_loss_that_is_no_longer_finite_stops_the_fit_and_names_layer_step_and_remedy(fresh):
    before, triplets = state_of(fresh.model), random_triplets(fresh.model, 3)
    config = psr.Joint(learning_rate=1e30, epochs=4)
    with pytest.raises(FitError, match=r"at step 2 of 4, first at blocks\.0\.hook_resid_post.*learning_rate") as caught:
        psr.fit(fresh.model, triplets, config)
    assert_unchanged(fresh.model, before)
    kept = caught.value.partial  # the state before the step that went astray: the random start
    assert isinstance(kept, Replacement)
    start = Parameters.random(fresh.model, list(kept.sites), config).finished()
    assert all(torch.equal(kept.sites[name].weights, site.weights) for name, site in start.items())


def test_an_explosion_names_the_layer_where_it_began(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 3)
    sites = dict(random_replacement(tiny_llama.model, size=0.01).sites)
    name = "blocks.1.hook_resid_post"
    sites[name] = Site(sites[name].directions * 1e8, sites[name].weights, sites[name].bias + 1, "relu")
    with pytest.raises(FitError, match=r"exploded to .* at step 1 of 2, first at blocks\.1\.hook_resid_post"):
        polish(tiny_llama.model, triplets, list(sites), sites, psr.Sequential(polish=psr.Polish(epochs=2)))


def test_numbers_that_are_not_finite_are_traced_to_the_first_layer_that_has_them(tiny):
    triplets = random_triplets(tiny.model, 3)
    sites = dict(random_replacement(tiny.model, size=0.01).sites)
    name = "blocks.1.hook_resid_post"
    sites[name] = Site(sites[name].directions * float("inf"), sites[name].weights, sites[name].bias, "relu")
    for each in ("mse", "ll"):
        with pytest.raises(FitError, match=r"is no longer finite at step 1 of 2, first at blocks\.1\.hook_resid_post"):
            polish(tiny.model, triplets, list(sites), sites, psr.Sequential(polish=psr.Polish(epochs=2, objective=each)))
