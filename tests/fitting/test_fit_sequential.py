"""The sequential solver against a slow reference: layer by layer, with a separate pass for every layer and triplet."""

from dataclasses import replace

import oracles
import pytest
import torch
from helpers import assert_unchanged, random_triplets, relative_error, state_of

import psr_lens as psr
from psr_lens.errors import FitError
from psr_lens.fitting.layerwise.regression import fit_site
from psr_lens.fitting.sequential import fit_sequential

PARTS = ("directions", "weights", "bias")


def reference_sequential(hf, triplets, layers, config) -> dict:
    """Fit one layer on what arrives there with all earlier ones in force, then go on to the next."""
    sites: dict = {}
    for layer in layers:
        inputs, wanted, alpha = [], [], []
        for triplet in triplets:
            kept = triplet.pair.span_length(config.span)
            base, prompted = triplet.pair.base_ids, triplet.pair.prompted_ids
            edits = {each: oracles.steering(site, triplet.trait / 100, len(base) - kept) for each, site in sites.items()}
            with torch.no_grad():
                inputs.append(oracles.read(hf, (*base, *triplet.response_ids), edits).residuals[layer][len(base) - kept :])
                wanted.append(oracles.read(hf, (*prompted, *triplet.response_ids)).residuals[layer][len(prompted) - kept :])
            alpha.append(torch.full((len(inputs[-1]),), triplet.trait / 100))
        sites[layer] = fit_site(torch.cat(inputs), torch.cat(wanted) - torch.cat(inputs), torch.cat(alpha), config)
    return sites


def close(found, wanted, inputs: torch.Tensor, tolerance: float) -> bool:
    """Whether two sites do the same, up to a part of what they do."""
    return bool((found.intervention(inputs) - wanted.intervention(inputs)).norm() <= tolerance * wanted.intervention(inputs).norm())


@pytest.mark.parametrize(("span", "rank", "layers"), [("R", 1, [0, 1, 2]), ("QR", 2, [0, 1, 2]), ("R", 1, [0, 2]), ("R", 1, [1])])
def test_the_replacement_is_that_of_the_reference(tiny, span, rank, layers):
    triplets = random_triplets(tiny.model, 5)
    config = psr.Sequential(regression_steps=5, ridge=0.3, token_budget=120, span=span, rank=rank, layers=layers)
    wanted = reference_sequential(tiny.hf, triplets, layers, config)
    found = psr.fit(tiny.model, triplets, config).sites
    assert list(found) == [f"blocks.{layer}.hook_resid_post" for layer in layers]
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * 3
    for layer, site in zip(layers, found.values(), strict=True):
        assert site.rule == "relu"
        assert close(site, wanted[layer], inputs, 1e-3)


def test_the_batching_changes_nothing(tiny):
    triplets = random_triplets(tiny.model, 6)
    first, *others = (
        psr.fit(tiny.model, triplets, psr.Sequential(token_budget=budget, regression_steps=5, ridge=0.3)).sites
        for budget in (8_192, 100, 1)
    )
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * 3
    for other in others:
        for name, site in first.items():
            assert close(other[name], site, inputs, 1e-4)


def test_the_order_of_the_triplets_changes_nothing(tiny_llama):
    triplets, config = random_triplets(tiny_llama.model, 6), psr.Sequential(token_budget=100, regression_steps=5, ridge=0.3)
    forwards, backwards = (psr.fit(tiny_llama.model, each, config).sites for each in (triplets, triplets[::-1]))
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * 3
    for name, site in forwards.items():
        assert close(backwards[name], site, inputs, 1e-4)


def test_fitting_twice_gives_the_same_to_the_last_bit(tiny):
    triplets, config = random_triplets(tiny.model, 4), psr.Sequential(regression_steps=20, token_budget=100)
    first, again = (psr.fit(tiny.model, triplets, config).sites for _ in range(2))
    for name, site in first.items():
        assert all(torch.equal(getattr(site, part), getattr(again[name], part)) for part in PARTS)


@pytest.mark.parametrize(("settings", "limit"), [({}, 0.9), ({"layers": 1}, 0.95), ({"rank": 3, "span": "QR"}, 0.8)], ids=str)
def test_the_replacement_comes_closer_to_the_prompt(tiny, settings, limit):
    # On random weights no direction leads, so that a low rank catches little: 0.57 to 0.67 over models with all defaults. Of only 8
    # triplets it was 0.61 to 0.91, which rounding on another processor decided.
    triplets = random_triplets(tiny.model, 16)
    config = psr.Sequential(regression_steps=100, **settings)
    assert relative_error(tiny.model, triplets, psr.fit(tiny.model, triplets, config)) < limit


def test_the_model_is_left_as_it_was(fresh):
    fresh.model.train(True)
    fresh.model.requires_grad_(True)
    before = state_of(fresh.model)
    psr.fit(fresh.model, random_triplets(fresh.model, 4), psr.Sequential(regression_steps=5, token_budget=60))
    assert_unchanged(fresh.model, before)


def test_a_model_in_training_mode_is_fitted_without_dropout(fresh):
    triplets, config = random_triplets(fresh.model, 4), psr.Sequential(regression_steps=5, token_budget=60)
    wanted = psr.fit(fresh.model, triplets, config).sites
    fresh.model.train(True)
    for name, site in psr.fit(fresh.model, triplets, config).sites.items():
        assert torch.equal(site.weights, wanted[name].weights)


def test_gradients_turned_off_outside_do_not_matter(tiny_llama):
    triplets, config = random_triplets(tiny_llama.model, 3), psr.Sequential(regression_steps=5)
    wanted = psr.fit(tiny_llama.model, triplets, config).sites
    with torch.no_grad():
        found = psr.fit(tiny_llama.model, triplets, config).sites
    for name, site in wanted.items():
        assert torch.equal(found[name].weights, site.weights)
        assert not found[name].weights.requires_grad


@pytest.mark.parametrize("solver", [psr.Sequential, psr.Local])
def test_a_layer_whose_activations_are_not_finite_is_named(tiny, solver):
    def spoil(activation, hook):
        return activation * float("inf")

    triplets = random_triplets(tiny.model, 3)
    before = state_of(tiny.model)
    with tiny.model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", spoil)]):
        spoiled = pytest.raises(FitError, match=rf"{solver.solver}: at blocks\.1\.hook_resid_post .*not all finite")
        with spoiled:
            psr.fit(tiny.model, triplets, solver(regression_steps=2))
    assert_unchanged(tiny.model, before)


@pytest.mark.usefixtures("bars_at_once")
def test_progress_goes_by_layer_and_shows_its_error(tiny_llama, capsys):
    psr.fit(tiny_llama.model, random_triplets(tiny_llama.model, 3), psr.Sequential(regression_steps=2))
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "layer" in shown
    assert "hook=blocks.2.hook_resid_post" in shown
    assert "error=0." in shown


def test_each_context_is_read_once(tiny_llama):
    triplets, calls = random_triplets(tiny_llama.model, 6), []
    with tiny_llama.model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda activation, hook: calls.append(len(activation)))]):
        fit_sequential(
            tiny_llama.model, triplets, ["blocks.1.hook_resid_post"], psr.Sequential(regression_steps=2, token_budget=80)
        )
    assert sum(calls) == 2 * len(triplets)


def test_rows_in_main_memory_give_the_same(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 6)
    whole, chunked = (
        psr.fit(tiny_llama.model, triplets, psr.Sequential(regression_steps=5, ridge=0.3, regression_batch=batch)).sites
        for batch in (65_536, 11)
    )
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * 3
    for name, site in whole.items():
        assert close(chunked[name], site, inputs, 1e-5)


def test_the_rank_is_the_solvers_own_unless_it_is_given():
    assert [solver().rank for solver in (psr.Sequential, psr.Local, psr.Joint)] == [4, 4, 1]
    assert not hasattr(psr.DiM(), "rank")
    assert psr.Sequential(rank=2).rank == replace(psr.Joint(), rank=2).rank == 2
