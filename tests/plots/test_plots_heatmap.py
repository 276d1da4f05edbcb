"""The heatmap shows the result's own numbers, at the right places, on one scale."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import named
from made_up_results import METHODS, WORDS, comparison

from psr_lens import plots


def test_heatmap_holds_the_magnitudes_of_one_response(result):
    figure = plots.magnitude_heatmap(result, triplet=1)
    rows = slice(len(WORDS), 2 * len(WORDS))
    assert [trace.name for trace in figure.data] == ["prompt", *METHODS]
    np.testing.assert_array_equal(named(figure, "prompt").customdata[..., 0], result.magnitude[rows].numpy())
    for name in METHODS:
        np.testing.assert_array_equal(named(figure, name).customdata[..., 0], result.methods[name].magnitude[rows].numpy())


def test_heatmap_has_one_colour_axis_clipped_at_its_floor(result):
    figure = plots.magnitude_heatmap(result)
    axis = figure.layout.coloraxis
    assert {trace.coloraxis for trace in figure.data} == {"coloraxis"}
    largest = max(float(result.magnitude.max()), *(float(trace.magnitude.max()) for trace in result.methods.values()))
    assert axis.cmax == pytest.approx(math.log10(largest))
    assert axis.cmin == -1
    for trace in figure.data:
        assert trace.z.min() >= axis.cmin
        magnitude = trace.customdata[..., 0]
        above = magnitude > 10**axis.cmin
        np.testing.assert_allclose(trace.z[above], np.log10(magnitude[above]), rtol=1e-5)
    assert (named(figure, "S-PSR").z[:, :2] == axis.cmin).all()
    assert list(axis.colorbar.ticktext) == ["≤ 0.1", "1", "10", "100"]


def test_heatmaps_of_one_result_share_their_colours(result):
    axes = [plots.magnitude_heatmap(result, triplet).layout.coloraxis for triplet in range(3)]
    assert len({(axis.cmin, axis.cmax) for axis in axes}) == 1
    alone = plots.magnitude_heatmap(result, methods=["S-PSR"]).layout.coloraxis
    assert (alone.cmin, alone.cmax) == (axes[0].cmin, axes[0].cmax)


def test_repeated_tokens_keep_their_own_rows_in_reading_order(result):
    figure = plots.magnitude_heatmap(result)
    axis = figure.layout.yaxis
    assert list(axis.tickvals) == list(named(figure, "prompt").y) == list(range(len(WORDS)))
    assert axis.range[0] > axis.range[1]
    commas = [label for label in axis.ticktext if label.startswith(",")]
    assert len(commas) == 2
    assert len(set(commas)) == 2


def test_first_row_is_marked_as_the_prompts_last_token(result):
    labels = plots.magnitude_heatmap(result).layout.yaxis.ticktext
    assert "prompt:" in labels[0]
    assert "&lt;assistant&gt;" in labels[0]
    assert "−1" in labels[0]
    assert not any("prompt:" in label for label in labels[1:])


def test_markup_in_tokens_is_not_read_as_markup(result):
    labels = plots.magnitude_heatmap(result).layout.yaxis.ticktext
    assert not any("<script" in label for label in labels)
    assert any(label.startswith("&lt;script") for label in labels)
    assert not any("<script" in text for text in plots.magnitude_strips(result).data[0].text)


def test_heatmap_shows_chosen_methods_in_their_order(result):
    figure = plots.magnitude_heatmap(result, methods=["S-Const DiM", "A-PSR"])
    assert [trace.name for trace in figure.data] == ["prompt", "S-Const DiM", "A-PSR"]


def test_heatmap_grows_with_its_tokens():
    short, long = (plots.magnitude_heatmap(comparison(("<a>", *["w"] * count))) for count in (10, 60))
    assert long.layout.height - short.layout.height == 50 * 17


def test_large_heatmaps_show_the_largest_of_neighbours_and_say_so():
    result = comparison(("<a>", *["w"] * 49), responses=1, layers=130)
    figure = plots.magnitude_heatmap(result, max_tokens=20)
    shown = named(figure, "prompt").customdata[..., 0]
    assert shown.shape == (17, 44)
    assert shown[0, 0] == result.magnitude[:3, :3].max()
    assert shown[-1, -1] == result.magnitude[48:, 129:].max()
    assert figure.layout.xaxis.type == "category"
    assert list(named(figure, "prompt").x)[:2] == ["0–2", "3–5"]
    every_other = replace(result, layers=tuple(range(0, 260, 2)))
    assert list(named(plots.magnitude_heatmap(every_other, max_tokens=20), "prompt").x)[:2] == ["0, 2, 4", "6, 8, 10"]
    assert any("50 tokens and 130 layers" in note.text.replace("<br>", " ") for note in figure.layout.annotations)


def test_layers_keep_their_numbers():
    result = comparison(layers=3)
    figure = plots.magnitude_heatmap(replace(result, layers=(0, 7, 21)))
    assert list(figure.data[0].x) == ["0", "7", "21"]


def test_heatmap_without_any_steering_draws():
    result = comparison()
    still = {name: replace(trace, magnitude=torch.zeros_like(trace.magnitude)) for name, trace in result.methods.items()}
    figure = plots.magnitude_heatmap(replace(result, magnitude=torch.zeros_like(result.magnitude), methods=still))
    assert all(np.isfinite(trace.z).all() for trace in figure.data)
