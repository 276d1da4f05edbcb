"""Weights by what tokens decide, against plain transformers; and fits that use them, or ranks of their own."""

import oracles
import pytest
import torch
from helpers import random_triplets

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.fitting.layerwise.token_weights import FLOOR, decisive, row_weights

PARTS = ("directions", "weights", "bias")


@pytest.mark.parametrize("span", ["R", "QR"])
def test_weights_are_the_divergence_of_the_token_that_is_predicted(tiny, span):
    triplets = random_triplets(tiny.model, 4)
    found = decisive(tiny.model, triplets, psr.Sequential(token_weights="kl", span=span, token_budget=100))
    divergences = []
    for triplet in triplets:
        base, prompted, response = triplet.pair.base_ids, triplet.pair.prompted_ids, triplet.response_ids
        with torch.no_grad():
            p = oracles.read(tiny.hf, (*prompted, *response)).logits[len(prompted) - 1 : -1].double().softmax(-1)
            q = oracles.read(tiny.hf, (*base, *response)).logits[len(base) - 1 : -1].double().softmax(-1)
        divergences.append((p * (p / q).log()).sum(-1))
    spans = [triplet.pair.span_length(span) + len(triplet.response_ids) for triplet in triplets]
    mean = torch.cat(divergences).sum() / sum(spans)
    for weights, own, length, triplet in zip(found, divergences, spans, triplets, strict=True):
        wanted = torch.full((length,), FLOOR, dtype=torch.float64)
        start = triplet.pair.span_length(span) - 1  # the last prompt token predicts the first of the response
        wanted[start : start + len(own)] += (1 - FLOOR) * own / mean
        torch.testing.assert_close(weights.double(), wanted, rtol=1e-3, atol=1e-5)
    assert torch.cat(found).mean() == pytest.approx(1, abs=1e-5)


def test_an_instruction_that_changes_nothing_leaves_all_weights_alike(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 3)
    alike = [
        psr.Triplet(psr.PromptPair("", "", each.pair.base_ids, each.pair.base_ids, 1), each.response_ids, "") for each in triplets
    ]
    weights = torch.cat(decisive(tiny_llama.model, alike, psr.Sequential()))
    torch.testing.assert_close(weights, torch.full_like(weights, FLOOR))


@pytest.mark.parametrize("solver", [psr.Sequential, psr.Local])
def test_weights_and_ranks_are_the_same_from_files(tiny_llama, tmp_path, solver):
    triplets = random_triplets(tiny_llama.model, 4)
    settings = {"layers": [0, 1], "rank": "auto", "regression_steps": 3, "token_budget": 80, "ridge": 0.3}
    config = solver(token_weights="kl", **settings)
    held, read = (psr.fit(tiny_llama.model, triplets, config, scratch=scratch).sites for scratch in (None, tmp_path))
    plain = psr.fit(tiny_llama.model, triplets, solver(**settings)).sites
    for name, site in held.items():
        assert all(torch.equal(getattr(site, part), getattr(read[name], part)) for part in PARTS)
        assert site.rank != plain[name].rank or not torch.equal(site.weights, plain[name].weights)


@pytest.mark.parametrize("hook", ["resid_post", "z"])
def test_sites_of_several_ranks_are_saved_polished_and_resumed(tiny_llama, tmp_path, hook):
    triplets = random_triplets(tiny_llama.model, 4)
    polish = psr.Polish(epochs=1, batch_size=4)
    config = psr.Sequential(layers=[0, 1], rank="auto", hook=hook, regression_steps=3, polish=polish)
    polished = psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path / "checkpoint")
    again = psr.fit(tiny_llama.model, triplets, config, checkpoint=tmp_path / "checkpoint")
    loaded = psr.Replacement.load(polished.save(tmp_path / "saved"))
    assert len({site.rank for site in polished.sites.values()}) == 1
    for name, site in polished.sites.items():
        for other in (again, loaded):
            assert all(torch.equal(getattr(site, part), getattr(other.sites[name], part)) for part in PARTS)
    assert loaded.settings["rank"] == "auto"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rank", ["Auto", "", 0, 1.5, None, True])
def test_a_rank_is_a_whole_number_or_auto(rank):
    with pytest.raises(InputError, match=r"rank: .*at least 1, or 'auto'"):
        psr.Sequential(rank=rank)


@pytest.mark.usefixtures("unchecked")
def test_solvers_that_cannot_choose_a_rank_or_weigh_tokens_say_so():
    with pytest.raises(InputError, match="rank"):
        psr.Joint(rank="auto")
    with pytest.raises(InputError, match="token_weights"):
        psr.Joint(token_weights="kl")
    with pytest.raises(InputError, match="'uniform', 'kl'"):
        psr.Local(token_weights="KL")


@pytest.mark.parametrize("relative", [0.0, 1.0, 2.0, 3.0])
def test_a_massive_token_counts_as_much_as_another_of_its_relative_error(relative):
    """Ten tokens of norm 1, and one of norm 10: its squared error counts as that of a token of norm 1, whatever `relative` is below 2."""
    inputs = torch.eye(11, 16)
    inputs[10] *= 10
    ones = torch.ones(11)
    found = row_weights(inputs, torch.zeros_like(inputs), ones, ones, psr.Sequential(relative=relative))
    wanted = torch.ones(11, dtype=torch.float64)
    wanted[10] = 10.0 ** -max(2.0, relative)
    torch.testing.assert_close(found, wanted)
