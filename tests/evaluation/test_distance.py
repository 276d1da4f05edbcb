"""Distances from the prompt without massive tokens and at the median token, against plain transformers and in cases that are known."""

import math
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from helpers import random_replacement, random_triplets
from made_up_results import comparison
from massive_model import FLIPS, LAYER, STAYS

import psr_lens as psr
from psr_lens.evaluation.distance import METRICS, distance
from psr_lens.prompts import rephrase
from psr_lens.results.bootstrap import draws
from psr_lens.results.medians import median

OTHER_WORDS = "be a pirate ."


def residuals(hf, triplets, context, replacement=None):
    """The residual stream after each layer on the span R, `[layer, token, d_model]`, one sequence at a time."""
    rows = []
    for triplet in triplets:
        start = len(triplet.pair.ids(context)) - 1
        edits = {} if replacement is None else oracles.layer_edits(replacement.sites, 1.0, start)
        found = oracles.read(hf, (*triplet.pair.ids(context), *triplet.response_ids), edits)
        rows.append(torch.stack(found.residuals)[:, start:].double())
    return torch.cat(rows, dim=1)


def lower_median(values):
    return values.sort().values[(len(values) - 1) // 2]


def written_out(found, base, target, massive):
    """The three distances after each layer; `massive` is `[layer, token]`, and a token is left out at all layers."""
    rows, out = [], massive.any(dim=0)
    for mine, plain, theirs in zip(found, base, target, strict=True):
        error, delta = (mine - theirs).norm(dim=1), (theirs - plain).norm(dim=1)
        ratios = [math.sqrt(float(error[some].square().sum() / delta[some].square().sum())) for some in (delta > 0, ~out)]
        rows.append([*ratios, float(lower_median(error / delta))])
    return torch.tensor(rows).T


@pytest.fixture(scope="module")
def measured(massive):
    """What is to be compared, and what plain transformers gives for each method."""
    steered = random_replacement(massive.model, size=0.05)
    other = rephrase(massive.model, massive.triplets, OTHER_WORDS)
    base = residuals(massive.hf, massive.triplets, "base")
    prompted = residuals(massive.hf, massive.triplets, "prompted")
    paraphrase = residuals(massive.hf, other, "prompted")
    unsteered = (base, prompted, paraphrase)
    out = torch.stack(
        [torch.stack([layer.abs().amax(dim=1) >= 3 * lower_median(layer.norm(dim=1)) for layer in each]) for each in unsteered]
    ).any(dim=0)
    found = {"none": base, "x": residuals(massive.hf, massive.triplets, "base", steered), "paraphrase": paraphrase}
    return steered, out, {name: written_out(each, base, prompted, out) for name, each in found.items()}


def test_compare_gives_each_distance(massive, measured):
    steered, out, wanted = measured
    found = psr.compare(massive.model, massive.triplets, {"x": steered}, paraphrase=OTHER_WORDS, token_budget=1)
    assert found.massive.mask(found.tokens).T.equal(out)
    assert {(token.triplet, token.position) for token in found.massive.tokens} >= {FLIPS, STAYS}
    assert list(found.massive.typical) == ["base", "prompted", "paraphrase"]
    for name in ("x", "paraphrase"):
        each = found.distances[name]
        got = torch.stack([each.relative_rmse, each.without_massive, each.median])
        torch.testing.assert_close(got, wanted[name].float(), rtol=2e-3, atol=1e-4)
    # One token in ten, which only one of the contexts makes massive, puts the paraphrase further from the prompt than no steering is.
    other = found.distances["paraphrase"]
    assert other.relative_rmse[LAYER] > 1 > other.without_massive[LAYER]
    assert other.median[LAYER] < 1


def test_faithfulness_gives_each_distance_with_an_interval(massive, measured):
    steered, out, wanted = measured
    result = psr.faithfulness(massive.model, massive.triplets, {"x": steered}, paraphrases=OTHER_WORDS, token_budget=1)
    block = result.blocks[""]
    assert block.massive.count().tolist() == out.sum(dim=1).tolist()
    for name, close in block.methods.items():
        for values, each in zip((close.relative_rmse, close.rmse_without_massive, close.median_error), wanted[name], strict=True):
            np.testing.assert_allclose(values.value, each, rtol=2e-3, atol=1e-4)
    table = result.table()
    for metric, values in zip(METRICS, wanted["x"].tolist(), strict=True):
        assert [row.value for row in table.select(metric=metric, method="x", block="")] == pytest.approx(values, rel=2e-3)
    assert (block.methods["none"].median_error.value == 1).all()
    assert (block.methods["none"].rmse_without_massive.value == 1).all()
    apart = psr.faithfulness(massive.model, massive.triplets, {"x": steered}, paraphrases=[OTHER_WORDS, "speak as a pirate ."])
    assert list(apart.blocks[""].massive.typical) == ["base", "prompted", "paraphrase 1", "paraphrase 2"]
    assert len(apart.blocks[""].methods["paraphrase"].response) == 2 * 10


def test_one_token_decides_relative_rmse_and_not_the_median():
    magnitude = torch.full((101, 1), 1.0)
    magnitude[7] = 1000.0
    massive = magnitude[:, 0] > 10
    exact_there, wrong_there = torch.full((101, 1), 0.9), torch.full((101, 1), 0.1)
    exact_there[7], wrong_there[7] = 0.0, 5000.0
    bought, ruined = (
        distance((error.square().sum(0) / magnitude.square().sum(0)).sqrt(), error, magnitude, massive)
        for error in (exact_there, wrong_there)
    )
    assert float(bought.relative_rmse) < 0.01 < 4.9 < float(ruined.relative_rmse)
    assert [float(each.without_massive) for each in (bought, ruined)] == pytest.approx([0.9, 0.1])
    assert [float(each.median) for each in (bought, ruined)] == pytest.approx([0.9, 0.1])
    assert repr(bought) == "Distance(after the last layer: 0.009; without massive tokens 0.9; median token 0.9)"


def test_tokens_that_the_prompt_does_not_change_have_no_relative_error():
    magnitude, error = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]]), torch.ones(3, 2)
    found = distance(torch.tensor([0.1, math.nan]), error, magnitude, torch.zeros(3, dtype=torch.bool))
    assert found.median.tolist() == pytest.approx([0.25, math.nan], nan_ok=True)
    assert found.without_massive.tolist() == pytest.approx([math.sqrt(3 / 20), math.nan], nan_ok=True)


def test_what_an_older_comparison_lacks_is_nan_and_not_a_number():
    older = comparison()
    assert older.massive is None
    for found in older.distances.values():
        assert found.without_massive.isnan().all()
        assert found.median.isnan().all()
    table = older.table(trait="pirate")
    assert {row.method for row in table} == {*older.methods, "paraphrase"}
    for metric in METRICS[1:]:
        assert all(math.isnan(row.value) for row in table.select(metric=metric))
    assert [row.value for row in table.select(method="A-PSR", metric=METRICS[0])] == older.methods["A-PSR"].relative_rmse.tolist()
    frame = older.to_pandas()
    assert frame[frame["method"] != "prompt"]["error"].isna().all()
    assert frame["massive"].isna().all()
    assert "massive activation" not in older._repr_html_()


def test_a_table_and_a_frame_of_a_comparison_have_both(massive, measured):
    steered, out, _ = measured
    found = psr.compare(massive.model, massive.triplets, {"x": steered}, paraphrase=OTHER_WORDS)
    table = found.table(settings={"seed": 1})
    assert (len(table), table.settings["seed"], {row.n for row in table}) == (2 * 3 * 3, 1, {2})
    [row] = table.select(method="x", metric="relative RMSE without massive tokens", layer=1)
    assert row.value == pytest.approx(float(found.distances["x"].without_massive[1]))
    frame = found.to_pandas()
    mine = frame[(frame["method"] == "x") & (frame["layer"] == 1)]
    assert mine["massive"].tolist() == out[1].tolist()
    assert mine["error"].tolist() == found.methods["x"].error[:, 1].tolist()
    assert (frame[frame["method"] == "prompt"]["error"] == 0).all()
    assert found.massive.summary in found._repr_html_()


def test_the_median_has_the_interval_of_whole_responses():
    rng = np.random.default_rng(0)
    response = rng.integers(0, 7, 90)
    values = rng.normal(size=(90, 2)) + response[:, None] / 3
    values[[3, 40], 1] = np.nan
    found = median(values, response, 7)
    for column, each in enumerate(values.T):
        known = ~np.isnan(each)
        assert found.value[column] == np.sort(each[known])[(known.sum() - 1) // 2]
        resampled = []
        for weights in draws(7, 500):
            drawn = np.sort(np.repeat(each[known], weights[response[known]].astype(int)))
            resampled.append(drawn[(len(drawn) - 1) // 2])
        assert found.interval(column) == pytest.approx(tuple(np.quantile(resampled, (0.025, 0.975))))
    many = rng.exponential(size=(5000, 1))
    coarse = median(many, rng.integers(0, 9, 5000), 9)
    assert coarse.value[0] == np.sort(many[:, 0])[2499]
    assert coarse.low[0] < coarse.value[0] < coarse.high[0]
    assert np.isnan(median(np.full((4, 1), np.nan), np.zeros(4, dtype=int), 1).value).all()
    assert np.isnan(median(np.ones((4, 1)), np.zeros(4, dtype=int), 1).low).all()


def test_on_ordinary_tokens_both_ways_are_the_same(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 4)
    found = psr.compare(tiny_llama.model, triplets, {"x": random_replacement(tiny_llama.model)})
    assert not found.massive.tokens
    torch.testing.assert_close(found.distances["x"].without_massive, found.methods["x"].relative_rmse)
    assert replace(found, massive=None).distances["x"].without_massive.isnan().all()
    assert replace(found, massive=None).distances["x"].median.equal(found.distances["x"].median)
