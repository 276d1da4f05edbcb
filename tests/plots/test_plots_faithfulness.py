"""The figures of faithfulness show the result's own numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
from helpers import random_replacement, random_triplets, replacement_at

import psr_lens as psr
from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.plots.style import PALETTE


@pytest.fixture(scope="module")
def result(tiny_llama):
    model, triplets = tiny_llama.model, random_triplets(tiny_llama.model, 8)
    methods = {
        "A <b>": random_replacement(model, size=0.1),
        "S": random_replacement(model, layers=[1], size=0.1),
        "const": replacement_at(model, "hook_resid_post", [1], rule="constant", rank=1),
    }
    return psr.faithfulness(model, {"": triplets[:5], "others": triplets[5:]}, methods, paraphrases="be a pirate .")


def traces(figure, row):
    axis = "y" if row == 1 else "y2"
    return {trace.name: trace for trace in figure.data if trace.name and (trace.yaxis or "y") == axis}


@pytest.mark.parametrize("block", ["", "others"])
def test_next_token_has_a_dot_a_method_with_its_interval(result, block):
    figure, found = plots.next_token(result, block), result.blocks[block]
    names = ["none", "A <b>", "S", "const", "paraphrase"]
    for row, metric in ((1, "divergence"), (2, "agreement")):
        wanted = [getattr(found.methods[name], metric) for name in names]
        dots = traces(figure, row)["the instruction"]
        np.testing.assert_allclose(dots.customdata[:, 0], [float(each.value) for each in wanted])
        ends = np.array([each.interval() for each in wanted])
        shown = np.log10(ends) if row == 1 else ends
        np.testing.assert_allclose(dots.x + dots.error_x.array, shown[:, 1])
        np.testing.assert_allclose(dots.x - dots.error_x.arrayminus, shown[:, 0])
    away = [found.paraphrased["prompt" if name == "paraphrase" else name].divergence.value for name in names]
    np.testing.assert_allclose(traces(figure, 1)["held-out paraphrases"].customdata[:, 0], away)
    assert figure.layout.yaxis.ticktext == ("none", "A &lt;b&gt;", "S", "const", "paraphrase baseline")
    low, high = figure.layout.xaxis.range
    assert all(low < x < high for trace in traces(figure, 1).values() for x in trace.x)


def test_a_divergence_of_nothing_has_a_place_on_the_log_axis(tiny_llama):
    model = tiny_llama.model
    result = psr.faithfulness(model, random_triplets(model, 1), {"x": 0.0 * random_replacement(model)})
    unmoved = [replace(each, pair=replace(each.pair, prompted_ids=each.pair.base_ids)) for each in random_triplets(model, 3)]
    same = psr.faithfulness(model, unmoved, {"x": random_replacement(model)})
    for each in (result, same):
        for figure in (plots.next_token(each), plots.explained_energy(each), plots.coefficient_correlation(each)):
            numbers = [number for trace in figure.data for number in np.ravel(trace.x)]
            assert not any(math.isinf(number) for number in numbers)
            assert all(math.isfinite(end) for end in figure.layout.xaxis.range)


def test_correlations_leave_out_what_has_none_and_say_so(result):
    figure, sites = plots.coefficient_correlation(result), result.blocks[""].sites
    for row, metric in ((1, "pearson"), (2, "spearman")):
        lines = traces(figure, row)
        assert set(lines) == {"A &lt;b&gt;", "S"}
        np.testing.assert_allclose(lines["A &lt;b&gt;"].y, [getattr(site, metric).value for site in sites["A <b>"]])
        assert list(lines["S"].x) == [1]
    assert "const" in figure.layout.annotations[-1].text


def test_explained_energy_stands_over_what_each_site_fills_in_and_its_ceiling(result):
    figure, block = plots.explained_energy(result), result.blocks[""]
    above, below = traces(figure, 1), traces(figure, 2)
    assert set(above) == {"A &lt;b&gt;", "S", "const", "paraphrase baseline"}
    np.testing.assert_allclose(above["A &lt;b&gt;"].y, np.maximum(block.methods["A <b>"].explained.value, -0.25))
    assert above["paraphrase baseline"].line.dash == "dash"
    for name, shown in (("A <b>", "A &lt;b&gt;"), ("S", "S"), ("const", "const")):
        filled, ceiling = below[shown], below[f"{shown}, ceiling"]
        np.testing.assert_allclose(ceiling.y, [site.ceiling.value for site in block.sites[name]])
        np.testing.assert_allclose(filled.y, [max(float(site.filled.value), -0.25) for site in block.sites[name]])
        assert all(low <= high for low, high in zip(filled.y, ceiling.y, strict=True))
        assert ceiling.line.dash == "dot"
    assert figure.layout.yaxis.range[0] >= -0.3


def test_colours_say_what_a_method_is(result):
    lines = traces(plots.explained_energy(result), 1)
    assert {name: lines[name].line.color for name in lines} == {
        "A &lt;b&gt;": PALETTE["A-PSR"],
        "S": PALETTE["S-PSR"],
        "const": PALETTE["constant"],
        "paraphrase baseline": PALETTE["paraphrase"],
    }


def test_an_unknown_block_is_refused(result):
    for figure in (plots.next_token, plots.coefficient_correlation, plots.explained_energy):
        with pytest.raises(InputError, match="block: got 'procedures', expected one of '', 'others'"):
            figure(result, "procedures")


def test_results_show_themselves_in_a_notebook(result):
    shown = result._repr_html_()
    assert "A &lt;b&gt;" in shown
    assert "others" in shown
