"""Faithfulness against plain transformers, one sequence at a time, and in cases whose answer is known."""

import math
import sys
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from helpers import BACKENDS, assert_unchanged, random_replacement, random_triplets, replacement_at, state_of

import psr_lens as psr
from psr_lens.activations.paired_passes import collect
from psr_lens.activations.teacher_forced_pass import PassSteering
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import fingerprint
from psr_lens.prompts import rephrase
from psr_lens.replacement import Site

OTHER_WORDS = "be a pirate ."


def slow_reading(case, triplet, context, parts=(), alpha=1.0):
    """Residuals after each block and logits, both on the rows of R; `parts` are `(replacement, factor)`."""
    prompt = triplet.pair.ids(context)
    edits = {}
    for replacement, factor in parts:
        start = len(prompt) - triplet.pair.span_length(replacement.span)
        for name, site in replacement.sites.items():
            edits.setdefault(name, []).append((site, alpha * factor + replacement.offset, start))
    with torch.no_grad(), oracles.edited(case.hf, {name: oracles.all_added(*acting) for name, acting in edits.items()}):
        found = oracles.read(case.hf, [*prompt, *triplet.response_ids])
    rows = slice(len(prompt) - 1, None)
    return [residual[rows].double() for residual in found.residuals], found.logits[rows][:-1].double()


def slow_closeness(case, found, base, wanted):
    """Relative RMSE by layer, mean KL, top-1 agreement, written out; each argument has a reading a triplet."""
    rmse = []
    for layer in range(case.model.cfg.n_layers):
        error = energy = 0.0
        for (mine, _), (plain, _), (theirs, _) in zip(found, base, wanted, strict=True):
            error += float(((mine[layer] - plain[layer]) - (theirs[layer] - plain[layer])).square().sum())
            energy += float((theirs[layer] - plain[layer]).square().sum())
        rmse.append(math.sqrt(error / energy))
    divergences, agreed = [], []
    for (_, mine), (_, theirs) in zip(found, wanted, strict=True):
        for ours, wants in zip(mine, theirs, strict=True):
            p, q = torch.softmax(wants, -1), torch.softmax(ours, -1)
            divergences.append(float((p * (p / q).log()).sum()))
            agreed.append(float(ours.argmax() == wants.argmax()))
    return rmse, sum(divergences) / len(divergences), sum(agreed) / len(agreed)


def assert_close(closeness, slow):
    rmse, divergence, agreement = slow
    np.testing.assert_allclose(closeness.relative_rmse.value, rmse, rtol=1e-3)
    np.testing.assert_allclose(closeness.explained.value, 1 - np.square(rmse), rtol=1e-3, atol=1e-3)
    assert closeness.divergence.value == pytest.approx(divergence, rel=2e-3)
    assert closeness.agreement.value == pytest.approx(agreement)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_number_is_what_plain_transformers_gives(load, family, backend):
    case = load(family, backend)
    triplets = random_triplets(case.model, 5)
    first = random_replacement(case.model, rank=2, size=0.1)
    second = replace(replacement_at(case.model, "attn.hook_z", [0, 1], span="QR"), offset=0.5)
    third = replacement_at(case.model, "hook_mlp_out", [1], rank=1, rule="sigmoid")
    methods = {"all": first, "plan": first - 0.5 * second, "single": third}
    result = psr.faithfulness(case.model, triplets, methods, paraphrases=OTHER_WORDS, alpha=0.7, token_budget=60)

    def readings(chosen, context, parts=()):
        return [slow_reading(case, triplet, context, parts, 0.7) for triplet in chosen]

    base, prompted = readings(triplets, "base"), readings(triplets, "prompted")
    other = readings(rephrase(case.model, triplets, OTHER_WORDS), "prompted")
    found = {
        "none": base,
        "all": readings(triplets, "base", [(first, 1.0)]),
        "plan": readings(triplets, "base", [(first, 1.0), (second, -0.5)]),
        "single": readings(triplets, "base", [(third, 1.0)]),
    }
    block = result.blocks[""]
    assert set(block.methods) == {*found, "paraphrase"}
    assert set(block.paraphrased) == {*found, "prompt"}
    for name, each in found.items():
        assert_close(block.methods[name], slow_closeness(case, each, base, prompted))
        assert_close(block.paraphrased[name], slow_closeness(case, each, base, other))
    assert_close(block.methods["paraphrase"], slow_closeness(case, other, base, prompted))
    assert_close(block.paraphrased["prompt"], slow_closeness(case, prompted, base, other))


def ranks(values):
    return np.array([(values < each).sum() + (values == each).sum() / 2 for each in values])


@pytest.mark.parametrize("span", ["R", "QR"])
def test_coefficients_are_correlated_with_what_the_prompt_calls_for_along_the_direction(tiny_llama, span):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 6)
    replacement = random_replacement(model, layers=[0, 2], size=0.3)
    [site, later] = psr.faithfulness(model, triplets, {"x": replacement}, span=span).blocks[""].sites["x"]
    point = "blocks.0.hook_resid_post"
    # Nothing is steered before layer 0, and of the question nothing at all.
    arriving, wanted = (collect(model, triplets, [point], context, "R")[point].double() for context in ("base", "prompted"))
    at = replacement.sites[point]
    z = at.directions[0].double()
    coefficient = torch.relu(arriving @ at.weights[0].double() + at.bias[0]).numpy() * float(z.norm())
    projection = ((wanted - arriving) @ (z / z.norm())).numpy()
    np.testing.assert_allclose(site.coefficient, coefficient, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(site.projection, projection, rtol=1e-3, atol=1e-3)
    assert site.pearson.value == pytest.approx(np.corrcoef(coefficient, projection)[0, 1], rel=1e-3)
    assert site.spearman.value == pytest.approx(np.corrcoef(ranks(coefficient), ranks(projection))[0, 1], rel=1e-3)
    assert (site.layer, site.rank, later.layer) == (0, 1, 2)
    if span == "R":
        missing, added = (wanted - arriving).numpy(), coefficient[:, None] * (z / z.norm()).numpy()
        assert site.ceiling.value == pytest.approx((projection**2).sum() / (missing**2).sum(), rel=1e-3)
        assert site.filled.value == pytest.approx(1 - ((missing - added) ** 2).sum() / (missing**2).sum(), rel=1e-3, abs=1e-3)
        # At the first site what is missing is all of Δ.
        assert site.share_in_span.value == pytest.approx(site.ceiling.value, rel=1e-6)
        assert later.share_in_span.value != pytest.approx(later.ceiling.value, rel=1e-3)


def test_at_strength_0_everything_is_as_without_steering(tiny_llama):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 4)
    block = psr.faithfulness(model, triplets, {"x": random_replacement(model)}, alpha=0.0).blocks[""]
    for name in ("none", "x"):
        assert (block.methods[name].relative_rmse.value == 1).all()
        assert (block.methods[name].explained.value == 0).all()
    for name in ("divergence", "agreement"):
        mine, none = (getattr(block.methods[method], name) for method in ("x", "none"))
        assert (mine.value, mine.interval()) == (none.value, none.interval())
    assert block.methods["x"].divergence_removed(block.methods["none"]).value == 0
    assert all(site.filled.value == 0 for site in block.sites["x"])


def test_a_constant_made_by_hand_explains_what_a_mean_explains(tiny_llama):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 4)
    point = "blocks.1.hook_resid_post"
    delta = psr.capture(model, triplets, [point])[point].double()
    mean = delta.mean(0)
    constant = psr.Replacement(
        {point: Site(mean.float()[None], torch.zeros(1, len(mean)), torch.ones(1), "constant")}, "R", "mean", fingerprint(model)
    )
    block = psr.faithfulness(model, triplets, {"mean": constant}).blocks[""]
    [site] = block.sites["mean"]
    energy = float(delta.square().sum())
    share = len(delta) * float(mean.square().sum()) / energy
    assert block.methods["mean"].explained.value[1] == pytest.approx(share, rel=1e-4)
    assert site.filled.value == pytest.approx(share, rel=1e-4)
    assert site.ceiling.value == pytest.approx(float((delta @ mean / mean.norm()).square().sum()) / energy, rel=1e-4)
    assert site.ceiling.value > site.filled.value
    assert math.isnan(site.pearson.value)
    assert math.isnan(site.spearman.value)
    assert block.methods["mean"].relative_rmse.value[0] == 1  # before its layer


def memorised(model, triplet):
    """A replacement that knows each token of one response by heart: one direction a token, at every layer on what arrives there."""
    sites, target = (
        {},
        collect(model, [triplet], [f"blocks.{n}.hook_resid_post" for n in range(model.cfg.n_layers)], "prompted", "R"),
    )
    for name, wanted in target.items():
        earlier = psr.Replacement(dict(sites), "R", "so far", fingerprint(model)) if sites else None
        arriving = collect(model, [triplet], [name], "base", "R", steered=None if earlier is None else PassSteering(earlier))[
            name
        ].double()
        with_one = torch.cat([arriving, torch.ones(len(arriving), 1, dtype=torch.double)], dim=1)
        probes = torch.linalg.pinv(with_one)  # λ_j of token i is 1 where i = j, else 0
        sites[name] = Site((wanted.double() - arriving).float(), probes[:-1].T.float().contiguous(), probes[-1].float(), "relu")
    return psr.Replacement(sites, "R", "memorised", fingerprint(model))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_prompted_activations_themselves_leave_nothing_to_explain(load, family):
    model = load(family, BACKENDS[0]).model
    triplet = max(random_triplets(model, 8), key=lambda each: len(each.response_ids))
    block = psr.faithfulness(model, [triplet], {"x": memorised(model, triplet)}).blocks[""]
    close = block.methods["x"]
    assert close.relative_rmse.value.max() < 2e-3
    assert close.divergence.value < 1e-4 < block.methods["none"].divergence.value
    assert close.agreement.value == 1
    for site in block.sites["x"]:
        assert site.rank == len(triplet.response_ids) + 1
        assert site.filled.value == pytest.approx(1, abs=1e-4)
        assert site.ceiling.value == pytest.approx(1, abs=1e-6)
    # One response says nothing about how responses differ.
    assert np.isnan(close.relative_rmse.low).all()
    assert math.isnan(close.divergence.low)


def test_a_prompt_that_changes_nothing_has_no_relative_error(tiny_llama):
    model = tiny_llama.model
    triplets = [replace(each, pair=replace(each.pair, prompted_ids=each.pair.base_ids)) for each in random_triplets(model, 3)]
    block = psr.faithfulness(model, triplets, {"x": random_replacement(model)}).blocks[""]
    assert np.isnan(block.methods["x"].relative_rmse.value).all()
    assert np.isnan(block.methods["x"].explained.value).all()
    assert block.methods["none"].divergence.value == 0
    assert block.methods["none"].agreement.value == 1


def test_batches_do_not_matter_and_logits_are_never_held_for_more_than_they_may(tiny_llama, monkeypatch):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 7)
    methods = {"x": random_replacement(model, size=0.1)}
    whole = psr.faithfulness(model, triplets, methods, paraphrases=OTHER_WORDS)
    module = sys.modules["psr_lens.evaluation.side_by_side"]
    most = 80
    monkeypatch.setattr(sys.modules["psr_lens.activations.teacher_forced_pass"], "_LOGITS", most * model.cfg.d_vocab * 4)
    monkeypatch.setattr(sys.modules["psr_lens.activations.next_token"], "_AT_ONCE", 3 * model.cfg.d_vocab)
    sizes = []
    read = module.read_batch
    monkeypatch.setattr(module, "read_batch", lambda *given, **named: sizes.append(len(given[1])) or read(*given, **named))
    parts = psr.faithfulness(model, triplets, methods, paraphrases=OTHER_WORDS)
    assert len(sizes) > 4
    assert max(sizes) < len(triplets)
    for row, other in zip(whole.table(), parts.table(), strict=True):
        assert replace(row, value=0, interval=(0, 0)) == replace(other, value=0, interval=(0, 0))
        assert other.value == pytest.approx(row.value, rel=1e-3, abs=1e-5)
        assert other.interval == pytest.approx(row.interval, rel=1e-3, abs=1e-4, nan_ok=True)


def test_several_paraphrases_are_pooled(tiny_llama):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 3)
    methods, texts = {"x": random_replacement(model)}, psr.organism.INSTRUCTIONS["pirate"][1:3]
    triplets = [replace(each, pair=psr.prompt_pairs(model, [each.pair.question], "be brief .")[0]) for each in triplets]
    both = psr.faithfulness(model, triplets, methods, paraphrases=texts).blocks[""]
    apart = [psr.faithfulness(model, triplets, methods, paraphrases=text).blocks[""] for text in texts]
    for name in ("kl", "error", "energy", "agreed", "predicted"):
        pooled = [getattr(each.methods["paraphrase"], name) for each in apart]
        np.testing.assert_allclose(getattr(both.methods["paraphrase"], name), sum(pooled), rtol=1e-9)
        pooled = [getattr(each.paraphrased["x"], name) for each in apart]
        np.testing.assert_allclose(getattr(both.paraphrased["x"], name), sum(pooled), rtol=1e-9)


def test_the_table_has_every_number_with_its_interval_and_its_responses(tiny_llama):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 9)
    methods = {"A": random_replacement(model, size=0.1), "S": replacement_at(model, "hook_resid_post", [1], rule="constant")}
    result = psr.faithfulness(
        model,
        {"": triplets[:6], "others": triplets[6:]},
        methods,
        paraphrases=OTHER_WORDS,
        alpha={"A": 0.5, "S": 2.0},
        layers=[0, 2],
    )
    table = result.table(trait="pirate", settings={"seed": 3})
    assert table.settings["seed"] == 3
    assert {row.block for row in table} == {"", "held-out paraphrase", "others", "others, held-out paraphrase"}
    [row] = table.select(block="", method="A", metric="KL")
    assert (row.n, row.trait, row.alpha, row.layer) == (6, "pirate", 0.5, None)
    assert row.value == pytest.approx(float(result.blocks[""].methods["A"].divergence.value))
    assert row.interval[0] < row.value < row.interval[1]
    assert {row.n for row in table.select(block="others")} == {3}
    assert [row.layer for row in table.select(block="", method="A", metric="relative RMSE")] == [0, 2]
    assert [row.layer for row in table.select(block="", method="A", metric="Pearson")] == [0, 1, 2]
    [row] = table.select(block="", method="S", metric="Spearman")
    assert math.isnan(row.value)
    assert row.alpha == 2.0
    [row] = table.select(block="others", method="none", metric="KL")
    assert row.alpha is None
    assert "missing" in table.select(block="", layer=1).to_markdown()


def test_one_replacement_goes_by_its_own_name_and_every_result_says_what_it_is_in_a_line(tiny_llama):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 3)
    found = psr.faithfulness(
        model, {"first": triplets[:1], "others": triplets[1:]}, replace(random_replacement(model), method="mine")
    )
    assert repr(found).endswith(" 3 responses (first, others), span R; methods: mine)")
    block = found.blocks["others"]
    assert repr(block) == "BlockFaithfulness(2 responses; methods: none, mine)"
    assert repr(block.methods["mine"]).endswith("2 responses)")
    assert "\n" not in repr(block.sites["mine"][0]) + repr(block.methods["none"].agreement)
    assert "1 first, 2 others" in found._repr_html_()


def test_two_points_of_one_layer_keep_apart_in_the_table(tiny_llama):
    model = tiny_llama.model
    plan = replacement_at(model, "hook_attn_out", [1]) + replacement_at(model, "hook_mlp_out", [1])
    table = psr.faithfulness(model, random_triplets(model, 3), {"plan": plan}).table()
    assert len(table.select(metric=["Pearson at hook_attn_out", "Pearson at hook_mlp_out"], layer=1)) == 2


def test_the_model_is_left_as_it_was(fresh):
    before = state_of(fresh.model)
    psr.faithfulness(fresh.model, random_triplets(fresh.model, 3), {"x": random_replacement(fresh.model)}, paraphrases=OTHER_WORDS)
    assert_unchanged(fresh.model, before)


@pytest.mark.usefixtures("unchecked")
def test_faithfulness_refuses_what_it_cannot_measure(tiny_llama):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 3)
    methods = {"x": random_replacement(model)}
    with pytest.raises(InputError, match="triplets: got an empty list"):
        psr.faithfulness(model, [], methods)
    with pytest.raises(InputError, match="triplets: got an empty list"):
        psr.faithfulness(model, {"": triplets, "others": []}, methods)
    with pytest.raises(InputError, match="methods: got an empty mapping, expected at least one method"):
        psr.faithfulness(model, triplets, {})
    with pytest.raises(
        InputError, match=r"triplets\['x'\]: got Replacement, expected a list of triplets\. .*; the model goes before them"
    ):
        psr.faithfulness(model, methods, triplets)
    with pytest.raises(InputError, match="'none', 'prompt' and 'paraphrase', which are taken"):
        psr.faithfulness(model, triplets, {"none": methods["x"]})
    with pytest.raises(InputError, match=r"paraphrases: got 'talk like a pirate \.', expected other words"):
        psr.faithfulness(model, triplets, methods, paraphrases="talk like a pirate .")
    with pytest.raises(InputError, match="alpha: got none for 'x'"):
        psr.faithfulness(model, triplets, methods, alpha={"y": 1.0})
    with pytest.raises(InputError, match="triplets: got an empty mapping"):
        psr.faithfulness(model, {}, methods)
    with pytest.raises(InputError, match="layers: got"):
        psr.faithfulness(model, triplets, methods, layers=[9])
    foreign = replace(methods["x"], model={"model_name": "other", "d_model": 64})
    with pytest.raises(ArtifactError, match="made for other with d_model=64"):
        psr.faithfulness(model, triplets, {"x": foreign})


def test_every_number_has_a_version_without_massive_tokens(massive):
    """Sums over the tokens that are not massive, from captured differences."""
    model, triplets = massive.model, massive.triplets
    found = psr.faithfulness(model, triplets, {"random": random_replacement(model, layers=[1], rank=2)})
    block = found.blocks[""]
    captured = psr.capture(model, triplets, "resid_post")
    ordinary = ~block.massive.mask(captured.tokens).any(dim=1)
    assert 0 < int((~ordinary).sum()) < len(ordinary)
    [site] = block.sites["random"]
    energy = captured["resid_post", 1].double().square().sum(1)
    for each, kept in ((site, torch.ones_like(ordinary)), (site.without_massive, ordinary)):
        wanted = [float(energy[kept & (captured.tokens.triplet == index)].sum()) for index in range(len(triplets))]
        np.testing.assert_allclose(each.delta, wanted, rtol=1e-4)
        np.testing.assert_array_equal(each.response, captured.tokens.triplet[kept].numpy())
    assert site.without_massive.pearson.value != site.pearson.value
    assert float(site.without_massive.share_in_span.value) != float(site.share_in_span.value)
    close = block.methods["random"]
    np.testing.assert_allclose(close.explained_without_massive.value, 1 - close.rmse_without_massive.value**2, rtol=1e-6)
    metrics = {row.metric for row in found.table()}
    for name in ("explained energy", "Pearson", "Spearman", "share of Δ in span", "ceiling", "filled", "relative RMSE"):
        assert {name, f"{name} without massive tokens"} <= metrics
