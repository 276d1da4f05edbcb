"""Distances from what prompts lead to, against the definition in NumPy on transformers' activations, and cases known exactly."""

import dataclasses

import numpy as np
import pytest
import torch
from helpers import random_replacement, random_triplets, replacement_at
from massive_model import activations

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.evaluation import reach as reach_module
from psr_lens.models import fingerprint
from psr_lens.replacement import Replacement, Site


@pytest.fixture(scope="module")
def triplets(tiny_llama):
    return random_triplets(tiny_llama.model, 6)


@pytest.fixture(scope="module")
def others(tiny_llama, triplets):
    """The same responses under other words, and other questions, the first of which repeats a question."""
    more = random_triplets(tiny_llama.model, 4, seed=9)
    more[0] = dataclasses.replace(more[0], pair=triplets[2].pair)
    return [psr.rephrase(tiny_llama.model, triplets, "hello there"), more]


@pytest.fixture(scope="module")
def found(tiny_llama, triplets, others):
    methods = {"A-PSR": random_replacement(tiny_llama.model, size=0.2), "nothing": random_replacement(tiny_llama.model)}
    return psr.reach(tiny_llama.model, triplets, methods, references=others, alpha={"A-PSR": 1.0, "nothing": 0.0})


def by_definition(queries, references, layer):
    """One token and one reference at a time; both are (activations, triplet) with activations `[layer, token, width]`, by run."""
    every = [(row, triplet) for rows, of in references for row, triplet in zip(rows[layer].numpy(), of, strict=True)]
    scale = np.std([row for row, _ in every], axis=0, ddof=1)
    found = []
    for row, own in zip(queries[0][layer].numpy(), queries[1], strict=True):
        apart = [
            np.sqrt((((row - other) / scale) ** 2).mean())
            for other, of in every
            if of.pair.base_ids != own.pair.base_ids and of.response_ids != own.response_ids
        ]
        found.append(min(apart))
    return np.array(found)


def test_distances_are_those_of_the_definition(tiny_llama, triplets, others, found):
    def run(of, context):
        owner = [triplet for triplet in of for _ in range(1 + len(triplet.response_ids))]
        return activations(tiny_llama.hf, of, context), owner

    base, prompted = run(triplets, "base"), run(triplets, "prompted")
    rest = [run(others[0], "prompted"), run(others[1], "base"), run(others[1], "prompted")]
    for name, queries in (("none", base), ("prompt", prompted)):
        for layer in range(3):
            wanted = by_definition(queries, [base, prompted, *rest], layer)
            np.testing.assert_allclose(found.distance[name][:, layer], wanted, rtol=1e-3)
    assert found.reference_tokens == sum(len(owner) for _, owner in (base, prompted, *rest))
    assert found.references == 6 + 6 + 6 + 4 + 4


def test_a_method_of_strength_0_is_as_far_as_the_base_run(found):
    np.testing.assert_array_equal(found.distance["nothing"], found.distance["none"])
    assert not np.array_equal(found.distance["A-PSR"], found.distance["none"])


def test_adding_the_prompts_own_difference_gives_the_prompts_own_distance(tiny_llama, others):
    """An affine map from every base activation to its prompted one, which as many directions as dimensions make exact for few tokens."""
    model, layer = tiny_llama.model, 1
    few = random_triplets(model, 3, longest=6, seed=2)
    base, prompted = (activations(tiny_llama.hf, few, context)[layer].double() for context in ("base", "prompted"))
    assert len(base) < base.shape[1]
    inputs = torch.cat([base, torch.ones(len(base), 1)], dim=1)
    solved = torch.linalg.lstsq(inputs, prompted - base, driver="gelsd").solution  # [width + 1, width]
    left = torch.eye(base.shape[1], dtype=torch.double)
    # A constant needs a probe that reads nothing: its own direction, with the offset 1.
    probes = torch.cat([solved[:-1].T, torch.zeros(1, base.shape[1])])
    directions = torch.cat([left, solved[-1:]])
    offset = torch.cat([torch.zeros(base.shape[1]), torch.ones(1)])
    site = Site(directions.float(), probes.float(), offset, "linear")
    oracle = Replacement({f"blocks.{layer}.hook_resid_post": site}, "R", "oracle", fingerprint(model))
    found = psr.reach(model, few, oracle, references=others, layers=[layer])
    np.testing.assert_allclose(found.distance["oracle"], found.distance["prompt"], rtol=2e-3)
    assert abs(found.distance["oracle"] - found.distance["none"]).max() > 0.01 * found.typical.max()


def test_a_constant_moves_monotonically_away(tiny_llama, triplets, others):
    model = tiny_llama.model
    constant = replacement_at(model, "hook_resid_post", [1], rule="constant", rank=1)
    sizes = [100.0, 400.0, 1600.0, 6400.0]
    read = [psr.reach(model, triplets, constant, references=others, layers=[1], alpha=size) for size in sizes]
    name = constant.method
    medians = [float(each.relative(name).value[0]) for each in read]
    assert medians == sorted(medians)
    assert medians[-1] > 10
    assert read[-1].far(name).value[0] == 1
    # Far away, distance grows as the strength does.
    assert medians[-1] / medians[-2] == pytest.approx(4, rel=0.1)


def test_numbers_are_relative_to_the_prompts_median_and_95th_percentile(found):
    prompt, method = found.distance["prompt"], found.distance["A-PSR"]
    middle = np.sort(prompt, axis=0)[(len(prompt) - 1) // 2]
    np.testing.assert_allclose(found.relative("prompt").value, 1)
    np.testing.assert_allclose(found.relative("A-PSR").value, np.sort(method / middle, axis=0)[(len(method) - 1) // 2])
    limit = np.sort(prompt, axis=0)[int(np.ceil(0.95 * len(prompt))) - 1]
    np.testing.assert_allclose(found.far("A-PSR").value, (method > limit).mean(axis=0))
    for each in (found.relative("A-PSR"), found.far("A-PSR")):
        assert ((each.low <= each.value) & (each.value <= each.high)).all()
    row = next(row for row in found.table() if row.method == "A-PSR" and row.metric == "far tokens" and row.layer == 2)
    assert (row.value, row.alpha, row.n) == (found.far("A-PSR").value[2], 1.0, 6)
    assert "A-PSR, far" in found._repr_html_()


def test_layers_are_read_in_as_many_passes_as_memory_needs_with_the_same_result(tiny_llama, triplets, found, others, monkeypatch):
    monkeypatch.setattr(reach_module, "_AT_ONCE", 1)
    again = psr.reach(tiny_llama.model, triplets, random_replacement(tiny_llama.model, size=0.2), references=others)
    np.testing.assert_allclose(again.distance["random"], found.distance["A-PSR"], rtol=1e-5)


def test_massive_tokens_are_left_out(massive):
    found = psr.reach(massive.model, massive.triplets, random_replacement(massive.model, size=0.01))
    unknown = np.isnan(found.distance["random"])
    at = [(int(triplet), int(position)) for triplet, position in zip(found.tokens.triplet, found.tokens.position, strict=True)]
    assert {at[row] for row in np.flatnonzero(unknown[:, 1])} == {(0, 2), (1, 1)}
    assert np.isfinite(found.relative("random").value).all()


def test_a_token_of_the_steered_run_alone_may_become_massive_and_is_far(tiny_llama, triplets):
    size = 1e4
    constant = replacement_at(tiny_llama.model, "hook_resid_post", [0], rule="constant", rank=1)
    found = psr.reach(tiny_llama.model, triplets, {"CAA": constant}, alpha=size, layers=[0])
    assert np.isfinite(found.distance["CAA"]).all()
    assert found.far("CAA").value[0] == 1


def test_every_model_class_and_architecture(tiny):
    triplets = random_triplets(tiny.model, 3)
    found = psr.reach(tiny.model, triplets, random_replacement(tiny.model, size=0.1))
    np.testing.assert_allclose(found.relative("prompt").value, 1)
    assert np.isfinite(found.distance["random"]).all()


def test_the_figure_has_the_results_numbers(found):
    figure = psr.plots.reach(found)
    upper, lower = ({trace.name: trace for trace in figure.data if trace.name and trace.yaxis == axis} for axis in ("y", "y2"))
    for name in ("prompt", "none", "A-PSR", "nothing"):
        np.testing.assert_allclose(upper[name].y, np.log10(found.relative(name).value), atol=1e-12)
        np.testing.assert_allclose(np.array(upper[name].customdata)[:, 0], found.relative(name).value)
        np.testing.assert_allclose(lower[name].y, found.far(name).value)
    low, high = figure.layout.yaxis.range
    assert all(low < value < high for trace in upper.values() for value in trace.y)


def test_bad_input_is_said(tiny_llama, triplets, found):
    model, method = tiny_llama.model, random_replacement(tiny_llama.model)
    with pytest.raises(
        InputError, match="triplets: got responses with no others to compare them with, expected responses to at least"
    ):
        psr.reach(model, triplets[:1] * 2, method)
    with pytest.raises(InputError, match=r"references\[1\]: got an empty list"):
        psr.reach(model, triplets, method, references=[triplets, []])
    with pytest.raises(InputError, match="methods: got the name 'prompt'"):
        psr.reach(model, triplets, {"prompt": method})
    with pytest.raises(InputError, match="method: got 'CAA', expected one of 'prompt', 'none', 'A-PSR', 'nothing'"):
        found.relative("CAA")
