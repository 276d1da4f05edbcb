"""Directions in words, cosines between them, and the tokens that a replacement reads."""

import dataclasses

import pytest
import torch
from helpers import random_replacement, random_site, random_triplets, replacement_at

import psr_lens as psr
from psr_lens.activations.paired_passes import collect
from psr_lens.activations.teacher_forced_pass import PassSteering
from psr_lens.errors import InputError
from psr_lens.interpretation.directions import activating_tokens, cosines, logit_lens, top_tokens
from psr_lens.interpretation.directions.lens import residual_logits
from psr_lens.interpretation.directions.sources import directions_of
from psr_lens.replacement import Replacement, Site


def through_transformers(case, vectors: torch.Tensor) -> torch.Tensor:
    """Last norm and unembedding of the same weights in transformers."""
    inner = case.hf.transformer.ln_f if case.family == "gpt2" else case.hf.model.norm
    with torch.no_grad():
        scaled = vectors / vectors.norm(dim=1, keepdim=True) * vectors.shape[1] ** 0.5
        return case.hf.lm_head(inner(scaled)) - case.hf.lm_head(inner(torch.zeros_like(scaled)))


def test_logits_of_directions_are_those_of_transformers_own_norm_and_head(tiny):
    vectors = torch.randn(5, tiny.model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    ours, theirs = residual_logits(tiny.model, vectors), through_transformers(tiny, vectors)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(residual_logits(tiny.model, 1_000 * vectors), ours, atol=1e-4, rtol=1e-4)
    assert not residual_logits(tiny.model, torch.zeros_like(vectors)).any()


def test_promoted_and_suppressed_tokens_are_the_ends_of_the_order(tiny):
    replacement = random_replacement(tiny.model, rank=2)
    lens = logit_lens(tiny.model, replacement, k=4)
    assert [(row.layer, row.direction) for row in lens.rows] == [(layer, place) for layer in range(3) for place in range(2)]
    tokenizer = tiny.model.tokenizer
    for row in lens.rows:
        order = residual_logits(tiny.model, replacement.sites[row.hook].directions)[row.direction].sort(descending=True)
        assert row.promoted == tuple(tokenizer.convert_ids_to_tokens(order.indices[:4].tolist()))
        assert row.suppressed == tuple(tokenizer.convert_ids_to_tokens(order.indices.flip(0)[:4].tolist()))
        torch.testing.assert_close(row.promoted_logits, order.values[:4])
        torch.testing.assert_close(row.suppressed_logits, order.values.flip(0)[:4])
    probes = logit_lens(tiny.model, replacement, k=4, part="weights")
    assert probes.part == "weights"
    assert probes.rows[0].promoted != lens.rows[0].promoted


def test_on_the_organism_a_pirates_direction_says_what_pirates_say(organism, pirate_triplets):
    pirate = psr.fit(organism.model, pirate_triplets, psr.Sequential(rank=1))
    last = logit_lens(organism.model, pirate, k=4).rows[-1]
    assert {"aye", "arr", "ahoy", "yoho"} == set(last.promoted)


def test_singular_directions_of_captured_differences_can_be_read_too(organism, pirate_triplets):
    statistics = psr.capture(organism.model, pirate_triplets, "resid_post", to=psr.Statistics(rank=3))
    rows = logit_lens(organism.model, statistics, k=3).rows
    assert [(row.layer, row.direction) for row in rows] == [(layer, place) for layer in range(6) for place in range(3)]
    assert set(directions_of(statistics)) == set(statistics.overall)


def test_cosines_are_those_of_the_directions(tiny_llama):
    left, right = random_replacement(tiny_llama.model, seed=1), random_replacement(tiny_llama.model, layers=[2, 0], seed=2)
    found = cosines({"left": left, "right": right})
    assert found.names == ("left",) * 3 + ("right",) * 2
    assert found.layers == (0, 1, 2, 0, 2)
    one, other = (each.sites["blocks.2.hook_resid_post"].directions[0] for each in (left, right))
    assert float(found.matrix[2, 4]) == pytest.approx(float(one @ other / one.norm() / other.norm()), abs=1e-5)
    torch.testing.assert_close(found.matrix, found.matrix.T)
    torch.testing.assert_close(found.matrix.diag(), torch.ones(5))
    minus = {name: -directions for name, directions in directions_of(left).items()}
    assert float(cosines({"left": left, "minus": minus}, layers=[1]).matrix[0, 1]) == pytest.approx(-1, abs=1e-6)


def test_between_several_directions_the_closest_combination_counts():
    x, y, z = torch.eye(3)
    plane, line = torch.stack([x, 5 * (x + 0.01 * y)]), (y + z)[None]
    name = "blocks.0.hook_resid_post"
    found = cosines({"plane": {name: plane}, "line": {name: line}, "minus": {name: -plane}, "none": {name: 0 * plane}})
    assert float(found.matrix[0, 1]) == pytest.approx(0.5**0.5, abs=1e-4)
    assert float(found.matrix[0, 2]) == pytest.approx(1, abs=1e-6)
    assert found.matrix[3].isnan().all()


@pytest.mark.parametrize("rank", [1, 3])
def test_top_tokens_are_those_with_the_largest_push_in_the_steered_run(tiny, rank, monkeypatch):
    monkeypatch.setattr(activating_tokens, "TOKEN_BUDGET", 64)  # several batches
    model, triplets = tiny.model, random_triplets(tiny.model, 9, seed=3)
    replacement = random_replacement(model, rank=rank, seed=4, size=0.2)
    found = top_tokens(model, triplets, replacement, 5, layer=1, per_response=None)
    name = "blocks.1.hook_resid_post"
    arriving = collect(model, triplets, [name], "base", "R", steered=PassSteering(replacement, arriving=[name]))[name]
    site = replacement.sites[name]
    pushed = (torch.relu(arriving @ site.weights.T + site.bias) @ site.directions).norm(dim=1)
    assert [each.coefficient for each in found.tokens] == pytest.approx(pushed.sort(descending=True).values[:5].tolist(), rel=1e-4)
    assert (found.searched, found.active) == (len(pushed), int((pushed > 0).sum()))
    assert (found.hook, found.layer) == (name, 1)
    for each in found.tokens:
        triplet = triplets[each.triplet]
        ids = (*triplet.pair.base_ids, *triplet.response_ids)
        at = len(triplet.pair.base_ids) + each.position
        words = model.tokenizer.convert_ids_to_tokens(list(ids))
        assert each.token == words[at]
        assert (*each.before, each.token, *each.after) == tuple(words[max(0, at - 24) : at + 25])


def test_one_token_a_response_unless_more_are_wanted(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 6, seed=3, longest=12)
    replacement = random_replacement(tiny_llama.model, seed=4, size=0.2)
    alone = top_tokens(tiny_llama.model, triplets, replacement, 20)
    assert len({each.triplet for each in alone.tokens}) == len(alone.tokens) <= 6
    assert len(top_tokens(tiny_llama.model, triplets, replacement, 20, per_response=None).tokens) > len(alone.tokens)


def test_a_single_direction_is_followed_alone_and_its_coefficient_is_given(tiny_llama):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 6, seed=3)
    replacement = random_replacement(model, rank=2, seed=4, size=0.2, layers=[1])
    name = "blocks.1.hook_resid_post"
    arriving = collect(model, triplets, [name], "base", "R")[name]
    site = replacement.sites[name]
    wanted = torch.relu(arriving @ site.weights.T + site.bias)[:, 1].max()
    found = top_tokens(model, triplets, replacement, 3, direction=1)
    assert found.direction == 1
    assert found.tokens[0].coefficient == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("rule", ["linear", "projection"])
@pytest.mark.parametrize("kind", ["hook_resid_post", "attn.hook_z"])
def test_tokens_that_are_pushed_backwards_are_shown_too(tiny_llama, rule, kind):
    """By the length of the push, with its sign; against the rule written out."""
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 6, seed=3)
    site = random_site(model, kind, rank=1, rule=rule, seed=5)
    name = f"blocks.1.{kind}"
    replacement = Replacement({name: site}, "R", "signed", psr.models.fingerprint(model))
    arriving = collect(model, triplets, [name], "base", "R")[name]
    probe = site.weights if rule == "linear" else -site.directions
    read = (arriving.unsqueeze(-2) * probe).sum(-1) + site.bias  # [token, (head,) direction]
    heads = read.flatten(1)
    strongest = heads.gather(1, heads.abs().argmax(1, keepdim=True))[:, 0]
    order = strongest.abs().argsort(descending=True)[:9]
    found = top_tokens(model, triplets, replacement, 9, direction=0, per_response=None)
    assert [each.coefficient for each in found.tokens] == pytest.approx(strongest[order].tolist(), rel=1e-4)
    assert min(each.coefficient for each in found.tokens) < 0
    assert found.active == len(strongest)
    lengths = (read.unsqueeze(-1) * site.directions).sum(-2).flatten(1).norm(dim=1)
    lengths = lengths * read[:, 0].sign() if kind == "hook_resid_post" else lengths
    together = top_tokens(model, triplets, replacement, 9, per_response=None)
    wanted = lengths[lengths.abs().argsort(descending=True)[:9]]
    assert [each.coefficient for each in together.tokens] == pytest.approx(wanted.tolist(), rel=1e-4)
    figure = psr.plots.top_tokens(found)
    assert sorted(figure.data[0].x) == sorted(each.coefficient for each in found.tokens)  # by rows, which are distinct tokens
    low, high = figure.layout.xaxis.range
    assert low <= min(figure.data[0].x)
    assert high >= max(figure.data[0].x)
    assert len({each.coefficient > 0 for each in found.tokens}) == len(set(figure.data[0].marker.color))


def test_a_replacement_that_never_acts_gives_an_empty_list(tiny_llama):
    model = tiny_llama.model
    width = model.cfg.d_model
    silent = Site(torch.ones(1, width), torch.zeros(1, width), torch.tensor([-1.0]), "relu")
    replacement = Replacement({"blocks.0.hook_resid_post": silent}, "R", "silent", psr.models.fingerprint(model))
    found = top_tokens(model, random_triplets(model, 3), replacement)
    assert found.tokens == ()
    assert found.active == 0


@pytest.mark.usefixtures("unchecked")
def test_errors_name_the_argument(tiny_llama):
    model = tiny_llama.model
    replacement, triplets = random_replacement(model), random_triplets(model, 2)
    with pytest.raises(InputError, match="k: got 0, expected 1 to"):
        logit_lens(model, replacement, 0)
    with pytest.raises(InputError, match="part: got 'both'"):
        logit_lens(model, replacement, part="both")
    with pytest.raises(InputError, match="source: got 'pirate'"):
        logit_lens(model, "pirate")
    with pytest.raises(
        InputError, match=r"source: got directions at blocks.0.hook_resid_post 7 wide, expected the model's d_model"
    ):
        logit_lens(model, {"blocks.0.hook_resid_post": torch.ones(1, 7)})
    with pytest.raises(InputError, match=r"source: got directions at blocks.0.attn.hook_z.*residual stream"):
        logit_lens(model, replacement_at(model, "attn.hook_z", [0]))
    with pytest.raises(InputError, match="sources: got none"):
        cosines({})
    with pytest.raises(InputError, match=r"layers: got \[9\]"):
        cosines({"A": replacement}, layers=[9])
    with pytest.raises(InputError, match="sources: got directions 7 and 32 wide"):
        cosines({"A": replacement, "B": {"blocks.0.hook_resid_post": torch.ones(1, 7)}})
    with pytest.raises(InputError, match="layer: got 9, expected a layer at which the replacement acts"):
        top_tokens(model, triplets, replacement, layer=9)
    with pytest.raises(InputError, match="direction: got 1, expected 0 to 0"):
        top_tokens(model, triplets, replacement, direction=1)
    with pytest.raises(InputError, match="k: got 0, expected a whole number, 1 or more"):
        top_tokens(model, triplets, replacement, 0)


def test_results_are_frozen(tiny_llama):
    lens = logit_lens(tiny_llama.model, random_replacement(tiny_llama.model), 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        lens.part = "weights"
