"""The figures show the result's own numbers, at the right places, on one scale."""

import math
import re
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from helpers import named
from made_up_results import METHODS, WORDS, comparison

from psr_lens import plots
from psr_lens.activations.massive_activations import MassiveActivations, MassiveToken
from psr_lens.errors import InputError
from psr_lens.plots import style, text_strips
from psr_lens.plots.heatmap import token_axis
from psr_lens.prompts.token_text import readable, readable_text

# Coefficients under the strips


def bars_of(figure, name):
    """The bars of what a method adds, and those of what the prompt calls for beside them."""
    at = [trace.name for trace in figure.data].index(f"{name} adds")
    return figure.data[at : at + 2]


def test_bars_are_the_coefficients_and_what_the_prompt_calls_for(result):
    figure = plots.magnitude_strips(result, 2, 2)
    rows = slice(2 * len(WORDS), None)
    strips = dict(zip(["prompt", *METHODS], figure.data, strict=False))
    assert strips["prompt"].customdata.shape[1] == 5
    for name, site in (("A-PSR", 2), ("S-PSR", 0), ("S-Const DiM", 0)):
        trace = result.methods[name]
        bars = bars_of(figure, name)
        unit = None
        for bar, wanted, column in zip(bars, (trace.coefficient, trace.projection), (5, 6), strict=True):
            numbers = wanted[rows, site].numpy()
            np.testing.assert_array_equal(bar.customdata, numbers)
            np.testing.assert_array_equal(strips[name].customdata[:, column], numbers)
            unit = unit or bar.y[0] / numbers[0]  # both to one scale
            np.testing.assert_allclose(bar.y, unit * numbers, rtol=1e-5)
            assert "%{customdata:.3g}" in bar.hovertemplate
        assert "adds %{customdata[5]:.3g}, prompt calls for %{customdata[6]:.3g}" in strips[name].hovertemplate
        np.testing.assert_array_equal(bars[0].base, bars[1].base)
        assert unit > 0
        assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # so that bars hang


def test_bars_stand_beside_each_other_between_their_strip_and_the_next():
    result = comparison(("<a>", *["building"] * 30))
    figure = plots.magnitude_strips(result, 0, 2)
    left, right = bars_of(figure, "S-PSR")
    np.testing.assert_allclose(left.x + left.width / 2, right.x - right.width / 2, rtol=1e-5)
    own, after = (next(trace for trace in figure.data if trace.name == name) for name in ("S-PSR", "S-Const DiM"))
    for bar in (left, right):
        ends = np.stack([bar.base, bar.base + bar.y])
        assert (ends.min(axis=0) > np.array(own.y) + own.width / 2).all()
        assert (ends.max(axis=0) < np.array(after.y) - after.width / 2).all()


def test_round_numbers_label_lines_at_their_lengths(result):
    figure = plots.magnitude_strips(result, 0, 2)
    labels = zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True)
    marks = [(at, float(re.sub("<.*?>", "", text).replace("−", "-"))) for at, text in labels if "■" not in text]
    for name, (at, mark) in zip(METHODS, marks[:3], strict=True):
        bar = bars_of(figure, name)[1]
        unit = bar.y[0] / bar.customdata[0]
        assert at == pytest.approx(bar.base[0] + mark * unit, rel=1e-5)


def test_a_layer_where_nothing_acts_has_no_bars_and_the_slider_begins_where_most_do(result):
    figure = plots.magnitude_strips(result, 0, 0)
    assert [trace.name for trace in figure.data if trace.type == "bar"] == [
        "prompt",
        *METHODS,
        "A-PSR adds",
        "the prompt calls for",
    ]
    (slider,) = plots.magnitude_strips(result).layout.sliders
    assert [step.label for step in slider.steps] == ["0", "1", "2", "3"]
    assert slider.active == 2
    (slider,) = plots.magnitude_strips(result, methods=["A-PSR"]).layout.sliders
    assert slider.active == 3
    adapter = replace(result.methods["A-PSR"], hooks=(), coefficient=torch.zeros(24, 0), projection=torch.zeros(24, 0))
    figure = plots.magnitude_strips(replace(result, methods={"LoRA": adapter}), layer=3)
    assert [trace.name for trace in figure.data if trace.type == "bar"] == ["prompt", "LoRA"]
    assert "Bars" not in figure.layout.annotations[-1].text
    figure = plots.magnitude_strips(result, layer=0, methods=["S-PSR"])  # which acts at another layer
    assert "Bars" not in figure.layout.annotations[-1].text


@pytest.mark.parametrize(("methods", "labels"), [(["A-PSR"], [0, 5, 10, 15, 20, 25]), (None, [0, 10, 20])])
def test_of_many_layers_so_many_are_labelled_as_stand_side_by_side_in_a_narrow_window(methods, labels):
    deep = comparison(layers=30)
    figure = plots.magnitude_heatmap(deep, methods=methods)
    assert [int(label) for label in figure.layout.xaxis.tickvals] == labels
    assert plots.magnitude_heatmap(comparison(layers=12)).layout.xaxis.tickvals is None


def test_any_number_of_columns_is_labelled():
    figure = go.Figure([go.Heatmap(x=list(range(700)), z=[[0] * 700], xaxis=f"x{panel}") for panel in range(1, 6)])
    token_axis(figure, ["a"])
    assert len(figure.layout.xaxis.tickvals) == 3


TWICE = ("blocks.1.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out", "blocks.3.hook_mlp_out")


def test_panels_of_two_hook_points_of_a_layer_name_them(result):
    twice = replace(result.methods["A-PSR"], hooks=TWICE)
    figure = plots.coefficient_scatter(replace(result, methods={"A-PSR": twice}), "A-PSR")
    named = [each.text.partition("<br>r =")[0] for each in figure.layout.annotations if "<br>r =" in each.text]
    assert named == ["layer 1<br>hook_attn_out", "layer 1<br>hook_mlp_out", "layer 2", "layer 3"]
    assert "layer 1, hook_mlp_out" in figure.data[3].hovertemplate


def test_two_hook_points_of_a_layer_have_bars_of_their_own(result):
    twice = replace(result.methods["A-PSR"], hooks=TWICE)
    figure = plots.magnitude_strips(replace(result, methods={"A-PSR": twice}), layer=1)
    bars = [trace for trace in figure.data if str(trace.name).endswith(("A-PSR adds", "the prompt calls for"))]
    assert [bar.name for bar in bars[::2]] == ["hook_attn_out: A-PSR adds", "hook_mlp_out: A-PSR adds"]
    assert "hook_mlp_out: adds" in figure.data[1].hovertemplate
    shown = [twice.coefficient[:8, 0], twice.projection[:8, 0], twice.coefficient[:8, 1], twice.projection[:8, 1]]
    for bar, wanted in zip(bars, shown, strict=True):
        np.testing.assert_array_equal(bar.customdata, wanted.numpy())
    np.testing.assert_allclose(
        (bars[2].base - bars[0].base).astype(float), text_strips._LANE, rtol=1e-5
    )  # one lane below the other


# Relative RMSE


def test_rmse_lines_are_the_results(result):
    figure = plots.relative_rmse(result)
    for name in METHODS:
        np.testing.assert_array_equal(named(figure, name).y, result.methods[name].relative_rmse.numpy())
        assert list(named(figure, name).x) == list(result.layers)
    baseline = named(figure, "paraphrase baseline")
    np.testing.assert_array_equal(baseline.y, result.paraphrase_rmse.numpy())
    assert baseline.line.dash == "dash"
    assert figure.layout.yaxis.range[0] == 0
    assert figure.layout.yaxis.range[1] > 1.2
    assert [shape.y0 for shape in figure.layout.shapes] == [1]
    assert [note.text for note in figure.layout.annotations] == ["no steering"]


def test_rmse_without_a_paraphrase_baseline_and_with_a_division_by_zero(result):
    methods = {"S-PSR": replace(result.methods["S-PSR"], relative_rmse=torch.tensor([math.nan, math.inf, 0.5, 0.4]))}
    figure = plots.relative_rmse(replace(result, paraphrase_rmse=None, methods=methods))
    assert [trace.name for trace in figure.data] == ["S-PSR"]
    assert math.isfinite(figure.layout.yaxis.range[1])


def test_peaks_far_above_the_other_values_are_cut_off_and_labelled():
    result = comparison(layers=30)
    values = torch.full((30,), 0.6)
    spiked = values.clone()
    spiked[1:4] = torch.tensor([3.0, 10.4, 1.2])
    spiked[20] = 7.25
    many = replace(
        result,
        paraphrase_rmse=spiked,
        methods={"A-PSR": replace(result.methods["A-PSR"], relative_rmse=values)},
    )
    figure = plots.relative_rmse(many)
    assert figure.layout.yaxis.range[1] == pytest.approx(3 * 1.12)
    labels = {note.text: note for note in figure.layout.annotations if note.text.startswith("▲ ")}
    assert set(labels) == {"▲ 10.4", "▲ 7.25"}  # one for each stretch above the plot
    assert (labels["▲ 10.4"].x, labels["▲ 7.25"].x) == (2, 20)
    assert labels["▲ 10.4"].font.color == style.PALETTE["paraphrase"]
    assert "paraphrase baseline, layer 2" in labels["▲ 10.4"].hovertext
    np.testing.assert_array_equal(named(figure, "paraphrase baseline").y, spiked.numpy())
    # the same for a replacement's line, and for a value that is no number
    infinite = values.clone()
    infinite[5] = math.inf
    figure = plots.relative_rmse(replace(many, methods={"A-PSR": replace(many.methods["A-PSR"], relative_rmse=infinite)}))
    assert "▲ ∞" in [note.text for note in figure.layout.annotations]
    # values that are close to each other are all inside
    assert not any("▲" in note.text for note in plots.relative_rmse(comparison()).layout.annotations)


@pytest.mark.parametrize(("lifted", "top"), [((2, 3, 4), 2.0), ((), 4.5), ((9,), 4.5)])
def test_only_layers_with_massive_activations_are_cut_off(lifted, top):
    """A line that is high over many layers is no spike, unless a massive token lifts it there: then the plot ends above the rest."""
    result = comparison(layers=10)
    high = torch.tensor([1.0, 2.0, 4.5, 3.0, 2.5, 1.8, 1.5, 1.2, 0.9, 0.6])
    token = MassiveToken(0, -1, "a", lifted, {"base": (9.0,) * len(lifted)}, {"base": (True,) * len(lifted)}, (1,))
    found = MassiveActivations((token,) if lifted else (), result.layers, {"base": torch.ones(10)}, len(result.tokens), 3, "R", 3.0)
    ordinary = torch.ones_like(result.magnitude)
    error = 0.9 * ordinary
    error[0, :] = 100.0  # the massive token, if there is one
    massive = replace(result, magnitude=ordinary, massive=found, paraphrase_rmse=high, paraphrase_error=error, methods={})
    figure = plots.relative_rmse(massive)
    assert figure.layout.yaxis.range[1] == pytest.approx(1.12 * top)
    labels = [note.text for note in figure.layout.annotations if "▲" in note.text]
    assert labels == (["▲ 4.5"] if top < 4 else [])


# Distribution


def lines_and_bands(figure):
    """Each line with its outer and inner band, in the order of the panels."""
    lines = [trace for trace in figure.data if trace.name]
    bands = iter([trace for trace in figure.data if trace.fill == "toself"])
    return [(line, next(bands), next(bands)) for line in lines]


def test_lines_are_medians_and_bands_span_quantiles(result):
    found = lines_and_bands(plots.magnitude_distribution(result))
    assert [line.name for line, *_ in found] == [name for method in METHODS for name in ("prompt", method)]
    for line, outer, inner in found:
        magnitude = (result.magnitude if line.name == "prompt" else result.methods[line.name].magnitude).double().numpy()
        layers = [layer for layer in result.layers if line.name in ("prompt", "A-PSR") or layer >= 2]  # the others act from 2 on
        assert list(line.x) == layers
        wanted = np.quantile(magnitude, [0.01, 0.25, 0.5, 0.75, 0.99], axis=0)[:, layers]
        np.testing.assert_allclose(np.transpose(line.customdata), wanted, rtol=1e-6)
        np.testing.assert_allclose(line.y, np.log10(wanted[2]), rtol=1e-5)
        for band, low, high in ((outer, 0, 4), (inner, 1, 3)):
            upper, lower = np.split(np.array(band.y), 2)
            np.testing.assert_allclose(upper, np.log10(wanted[high]), rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(lower[::-1], np.log10(wanted[low]), rtol=1e-5, atol=1e-7)


def test_what_is_not_pushed_at_all_is_drawn_at_the_lower_edge(result):
    magnitude = result.methods["S-PSR"].magnitude.clone()
    magnitude[:16, 2] = 0
    figure = plots.magnitude_distribution(replace(result, methods={"S-PSR": replace(result.methods["S-PSR"], magnitude=magnitude)}))
    *_, (line, outer, _) = lines_and_bands(figure)
    low = figure.layout.yaxis.range[0] + 0.1
    assert line.customdata[0][2] == 0
    assert line.y[0] == pytest.approx(low)
    assert outer.y[-1] == pytest.approx(low)
    nothing = {"none": replace(result.methods["S-PSR"], magnitude=torch.zeros_like(magnitude))}
    figure = plots.magnitude_distribution(replace(result, magnitude=torch.zeros_like(magnitude), methods=nothing))
    assert [len(trace.x) for trace in figure.data] == [0] * 6


def test_many_layers_are_labelled_evenly(result):
    figure = plots.magnitude_distribution(comparison(layers=60))
    assert list(figure.layout.xaxis.tickvals) == list(range(0, 60, 4))


# Style


def test_one_colour_a_method_in_every_figure(result):
    colours = {name: each.color for name, each in style.method_styles(result).items()}
    rmse = plots.relative_rmse(result)
    spread = plots.magnitude_distribution(result)
    for name in METHODS:
        assert named(rmse, name).line.color == colours[name]
        assert named(spread, name).line.color == colours[name]
        adds, called_for = bars_of(plots.magnitude_strips(result, layer=2), name)
        assert adds.marker.color == colours[name]
        assert called_for.marker.color == colours["prompt"] == style.PALETTE["prompt"]


def test_roles_come_from_what_a_method_did(result):
    renamed = replace(result, methods=dict(zip("abc", result.methods.values(), strict=True)))
    assert [style.method_styles(renamed)[name].role for name in "abc"] == ["A-PSR", "S-PSR", "constant"]


def test_methods_of_one_role_look_different(result):
    many = replace(result, methods={str(place): result.methods["A-PSR"] for place in range(5)})
    styles = style.method_styles(many)
    assert len({styles[str(place)].color for place in range(5)}) == 5
    assert len({styles[str(place)].symbol for place in range(5)}) == 5


def test_every_figure_brings_its_own_colours_and_no_small_type(result):
    figures = [
        plots.magnitude_heatmap(result),
        plots.magnitude_strips(result),
        plots.relative_rmse(result),
        plots.magnitude_distribution(result),
    ]
    for figure in figures:
        layout = figure.to_plotly_json()["layout"]
        assert layout["template"]["layout"]["paper_bgcolor"] == style.PAPER
        assert layout["template"]["layout"]["font"]["color"] == style.INK
        assert figure.layout.width is None
        assert min(sizes(figure.to_plotly_json())) >= style.SMALL


def sizes(node: object, key: str = "") -> list[float]:
    """Font sizes anywhere in a figure."""
    if isinstance(node, dict):
        found = [size for name, value in node.items() for size in sizes(value, name)]
        return found + ([node["size"]] if "font" in key and "size" in node else [])
    return [size for each in node for size in sizes(each, key)] if isinstance(node, list | tuple) else []


def test_ticks_are_written_in_real_units():
    assert [style.real_units(tick) for tick in (-2.0, -1.0, 0.0, 1.0, 3.0)] == ["0.01", "0.1", "1", "10", "1,000"]
    assert style.log_ticks(-1.0, 2.5) == [-1, 0, 1, 2]
    assert [style.real_units(tick) for tick in style.log_ticks(0.2, 1.1)] == ["2", "5", "10"]
    assert [style.round_below(value) for value in (0.07, 1.0, 4.9, 63.0)] == pytest.approx([0.05, 1, 2, 50])


@pytest.mark.parametrize(
    ("spelled", "read"),
    [
        (["Ġthe", "Ċ", "Ġ", "Ã©"], ["the", "↵", "␣", "é"]),
        (["▁the", "<0x0A>", "▁"], ["the", "↵", "␣"]),
        (["aye", "Ã©"], ["aye", "Ã©"]),
        (["Ġ", "Ã"], ["␣", "‹C3›"]),
    ],
)
def test_tokens_are_read_as_their_vocabulary_spells_them(spelled, read):
    assert readable(spelled) == read
    assert "".join(readable_text(spelled)) == "".join(read)


# Messages


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda result: plots.magnitude_heatmap(result, 3), "triplet: got 3, expected 0 to 2, one of the 3 responses."),
        (lambda result: plots.magnitude_heatmap(result, -1), "triplet: got -1, expected 0 to 2"),
        (lambda result: plots.magnitude_heatmap(result, methods=["CAA"]), "methods: got 'CAA', expected one of 'A-PSR', 'S-PSR'"),
        (
            lambda result: plots.magnitude_heatmap(result, methods="A-PSR"),
            "methods: got 'A-PSR', expected a list of texts or None. Put it in brackets.",
        ),
        (lambda result: plots.magnitude_heatmap(result, max_tokens=0), "max_tokens: got 0, expected 1 or more"),
        (
            lambda result: plots.coefficient_scatter(result, "CAA"),
            "method: got 'CAA', expected one of 'A-PSR', 'S-PSR', 'S-Const DiM'",
        ),
        (lambda result: plots.magnitude_strips(result, methods=["prompt"]), "The prompt is always shown"),
        (lambda result: plots.magnitude_strips(result, 9), "triplet: got 9"),
    ],
)
def test_errors_say_what_to_do(result, call, message):
    with pytest.raises(InputError) as caught:
        call(result)
    assert message in str(caught.value)
