"""What collateral says of diversity and of the relative dose, written out slowly."""

import math
import random
import warnings
from dataclasses import replace

import numpy as np
import oracles
import pytest
import torch
from helpers import BACKENDS, random_replacement

import psr_lens as psr
from psr_lens import organism
from psr_lens.evaluation.diversity import diversity
from psr_lens.replacement import Site

FEW = psr.SamplingConfig(max_new_tokens=8)


def pairs_of(model, count):
    return psr.prompt_pairs(model, organism.questions(count, split="held_out"), organism.instruction("pirate"))


def slow_diversity(answers):
    """Both metrics by their definitions, pair by pair."""
    runs = [[tuple(ids[at : at + 3]) for at in range(len(ids) - 2)] for ids in answers]
    distinct = [100 * len(set(each)) / len(each) if each else math.nan for each in runs]
    similar = []
    for row, first in enumerate(runs):
        shared = [
            len(set(first) & set(other)) / len(set(first) | set(other)) for at, other in enumerate(runs) if at != row and other
        ]
        similar.append(100 * sum(shared) / len(shared) if first and shared else math.nan)
    return distinct, similar


@pytest.mark.parametrize(
    "answers",
    [
        [[1, 2, 3, 4], [1, 2, 3, 9], [7, 7, 7, 7, 7, 7]],
        [[1, 2, 1, 2, 1, 2, 1, 2]] * 3,
        [[5, 6], [], [1, 2, 3]],
        [[1, 2, 3, 1, 2, 3]],
        [[random.Random(seed).randrange(4) for _ in range(30)] for seed in range(6)],
    ],
)
def test_diversity_is_that_of_trigrams_within_an_answer_and_between_answers(answers):
    found = diversity(answers)
    for metric, wanted in zip(("distinct-3", "self-similarity"), slow_diversity(answers), strict=True):
        assert found[metric].tolist() == pytest.approx(wanted, nan_ok=True)


def test_a_model_that_gives_every_question_the_same_answer_is_seen(organism):
    model, pairs = organism.model, pairs_of(organism.model, 4)
    site = Site(torch.ones(1, model.cfg.d_model) * 100, torch.zeros(1, model.cfg.d_model), torch.ones(1), "constant")
    stuck = replace(random_replacement(model), sites={f"blocks.{model.cfg.n_layers - 1}.hook_resid_post": site})
    found = psr.collateral(model, pairs, {"stuck": stuck}, sampling=psr.SamplingConfig(max_new_tokens=12, temperature=0))
    assert len(set(found.answers["stuck"])) == 1
    assert (found.scores["self-similarity"]["stuck"] == 100).all()
    assert found.scores["distinct-3"]["stuck"].max() < 20
    assert found.scores["self-similarity"]["none"].mean() < 50
    assert found.scores["distinct-3"]["none"].mean() > 90
    [row] = found.table().select(method="stuck", metric="self-similarity")
    assert (row.value, row.n) == (100, 4)
    [row] = found.table().select(method="stuck", metric="distinct-3 − prompt")
    assert row.value < -50
    assert "metrics: distinct-3, self-similarity, perplexity, relative dose" in repr(found)


def slow_doses(case, pair, ids, replacement, alpha, first):
    """‖added‖ / ‖arriving‖ by layer and token from `first` on, from plain transformers' own blocks."""
    ratios = {}

    def measured(layer, edit):
        def hook(activation):
            edited = edit(activation)
            ratios[layer] = ((edited - activation).norm(dim=1) / activation.norm(dim=1))[first:]
            return edited

        return hook

    edits = oracles.layer_edits(replacement.sites, alpha, first)
    with torch.no_grad():
        oracles.read(case.hf, [*pair.base_ids, *ids], {layer: measured(layer, edit) for layer, edit in edits.items()})
    return ratios


@pytest.mark.parametrize("span", ["R", "QR"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_dose_is_what_is_added_over_what_arrives(load, backend, span):
    case = load("llama", backend)
    pairs, replacement = pairs_of(case.model, 3), random_replacement(case.model, rank=2, size=0.2, layers=[0, 2], span=span)
    found = psr.collateral(case.model, pairs, {"x": replacement}, alpha=0.6, sampling=FEW, token_budget=40)
    answers = psr.generate(case.model, pairs, replacement, alpha=0.6, sampling=FEW)
    firsts = [len(pair.base_ids) - pair.span_length(span) for pair in pairs]
    slow = [
        slow_doses(case, pair, each.ids, replacement, 0.6, first) for pair, each, first in zip(pairs, answers, firsts, strict=True)
    ]
    dose = found.doses["x"]
    wanted = {layer: torch.cat([each[layer] for each in slow]).numpy() for layer in (0, 2)}
    assert dose.layers == (0, 2)
    np.testing.assert_allclose(dose.ratio, np.stack([wanted[0], wanted[2]], axis=1), rtol=2e-3, atol=1e-5)
    assert dose.answer.tolist() == [index for index, each in enumerate(slow) for _ in each[0]]
    rows = {(row.metric, row.layer): row for row in found.table().select(method="x") if row.metric.startswith("relative dose")}
    for layer, values in ((0, wanted[0]), (2, wanted[2]), (None, np.concatenate([*wanted.values()]))):
        assert rows["relative dose", layer].value == pytest.approx(values.mean(), rel=2e-3)
        assert rows["relative dose, 99th percentile", layer].value == pytest.approx(np.quantile(values, 0.99), rel=2e-3)
        assert rows["relative dose, maximum", layer].value == pytest.approx(values.max(), rel=2e-3)
    low, high = rows["relative dose", 0].interval
    assert low < rows["relative dose", 0].value < high
    assert rows["relative dose", 0].alpha == 0.6
    assert not found.table().select(method="prompt", metric="relative dose")


def test_a_dose_counts_the_tokens_that_are_steered(tiny_llama):
    """Of a replacement that acts on the last prompt token alone, one token an answer; at strength 0 nothing is added."""
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 3)
    last = replace(random_replacement(model, layers=[1]), tokens="last")
    found = psr.collateral(
        model, pairs, {"last": last, "off": random_replacement(model)}, alpha={"last": 1.0, "off": 0.0}, sampling=FEW
    )
    assert np.isfinite(found.doses["last"].ratio).sum() == 3
    assert found.doses["last"].mean().value == pytest.approx(np.nanmean(found.doses["last"].ratio))
    assert found.doses["off"].quantile(1.0) == 0


def test_a_dose_over_the_limit_is_said_everywhere(tiny_llama, tmp_path):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 3)
    methods = {"weak": random_replacement(model, size=0.01), "strong": random_replacement(model, size=1.0)}
    with pytest.warns(
        UserWarning, match=r"^strong at alpha=1 adds up to \S+ times the activation .* over the limit of 1\."
    ) as said:
        found = psr.collateral(model, pairs, methods, effects=psr.SideEffects(dose_limit=1), sampling=FEW)
    assert len(said) == 1
    assert found.overdosed == ("strong",)
    assert repr(found).endswith("relative dose; relative dose over 1: strong)")
    table = found.table()
    [share] = table.select(method="strong", metric="relative dose over 1 (%)")
    ratios = found.doses["strong"].ratio
    assert share.value == pytest.approx(100 * (ratios > 1).mean())
    assert table.settings["overdosed"] == ["strong"]
    table.to_json(tmp_path / "results.json")
    again = psr.ResultTable.from_json(tmp_path / "results.json")
    assert (again.settings["dose_limit"], again.settings["overdosed"]) == (1, ["strong"])
    assert repr(again.rows) == repr(table.rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert psr.collateral(model, pairs, methods, sampling=FEW).overdosed == ()
