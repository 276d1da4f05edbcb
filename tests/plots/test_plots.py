"""The figures show the result's own numbers, at the right places, on one scale."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import named
from made_up_results import METHODS, WORDS, comparison

from psr_lens import plots
from psr_lens.activations.massive_activations import MassiveActivations, MassiveToken
from psr_lens.errors import InputError
from psr_lens.plots import distribution, style
from psr_lens.prompts.token_text import readable, readable_text

# Coefficients under the text


def test_bars_are_the_coefficients_and_what_the_prompt_calls_for(result):
    figure = plots.coefficient_text(result, "S-PSR", triplet=2, layer=2)
    rows = slice(2 * len(WORDS), None)
    trace = result.methods["S-PSR"]
    np.testing.assert_array_equal(named(figure, "S-PSR adds").y, trace.coefficient[rows, 0].numpy())
    np.testing.assert_array_equal(named(figure, "the prompt calls for").y, trace.projection[rows, 0].numpy())
    np.testing.assert_array_equal(named(figure, "S-PSR adds").base, named(figure, "the prompt calls for").base)


def test_bars_hang_and_stand_beside_each_other(result):
    figure = plots.coefficient_text(result, "A-PSR", layer=1)
    left, right = named(figure, "A-PSR adds"), named(figure, "the prompt calls for")
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1] == 0
    assert all(one + width <= other for one, width, other in zip(left.offset, left.width, right.offset, strict=True))
    words = figure.data[-1]
    assert all(text < zero for text, zero in zip(words.y, left.base, strict=True))


def test_bars_of_one_line_do_not_reach_the_next(result):
    figure = plots.coefficient_text(result, "S-PSR")
    ends = np.array([bar.base + bar.y for bar in figure.data[:2]])
    words, zeros = np.array(figure.data[-1].y), np.array(figure.data[0].base)
    for line in sorted(set(zeros)):
        later = words[zeros > line]
        assert ends[:, zeros == line].max() <= (later.min() if len(later) else figure.layout.yaxis.range[0])
        assert ends[:, zeros == line].min() > words[zeros == line].max()


def test_text_flows_in_lines_that_fit_a_narrow_window():
    result = comparison(("<a>", *["building"] * 30))
    words = plots.coefficient_text(result, "A-PSR", layer=0).data[-1]
    lines = {height: [] for height in words.y}
    for text, center, height in zip(words.text, words.x, words.y, strict=True):
        lines[height].append((center, text))
    assert len(lines) > 4
    assert all(len(text) <= 42 for line in lines.values() for text in [" ".join(word for _, word in line if "<i" not in word)])
    assert all(center < 42 for line in lines.values() for center, _ in line)


def test_default_site_is_the_one_where_most_is_added(result):
    totals = result.methods["A-PSR"].coefficient.sum(dim=0)
    best = int(totals.argmax())
    figure = plots.coefficient_text(result, "A-PSR")
    assert f"layer {best}" in figure.layout.title.text
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0", "1", "2", "3"]
    assert slider.active == best
    assert [trace.visible for trace in figure.data] == [layer == best for layer in range(4) for _ in range(3)]
    chosen = plots.coefficient_text(result, "A-PSR", layer=1)
    np.testing.assert_array_equal(chosen.data[0].y, result.methods["A-PSR"].coefficient[: len(WORDS), 1].numpy())


def test_long_text_says_how_much_is_drawn():
    figure = plots.coefficient_text(comparison(("<a>", *["w"] * 499), responses=1), "A-PSR")
    assert len(figure.data[0].y) == 400
    assert "The first 400 of 500 tokens." in figure.layout.annotations[-1].text.replace("<br>", " ")


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


def test_violins_are_the_logs_of_the_magnitudes(result):
    figure = plots.magnitude_distribution(result)
    violins = [trace for trace in figure.data if trace.type == "violin" and trace.name == "A-PSR"]
    assert [trace.x0 for trace in violins] == list(result.layers)
    for trace, column in zip(violins, result.methods["A-PSR"].magnitude.T, strict=True):
        np.testing.assert_allclose(trace.y, np.log10(np.sort(column.numpy())), rtol=1e-5)
    prompts = [trace for trace in figure.data if trace.type == "violin" and trace.name == "prompt"]
    assert len(prompts) == len(METHODS) * len(result.layers)
    assert {trace.side for trace in prompts} == {"negative"}


def test_zeros_are_left_out_and_said_to_be(result):
    figure = plots.magnitude_distribution(result)
    assert [trace.x0 for trace in figure.data if trace.type == "violin" and trace.name == "S-PSR"] == [2, 3]
    notes = [note.text.replace("<br>", " ") for note in figure.layout.annotations]
    assert sum("zeros left out: all tokens at layers 0 and 1" in note for note in notes) == 2
    magnitude = result.methods["S-PSR"].magnitude.clone()
    magnitude[:6, 2] = 0
    figure = plots.magnitude_distribution(replace(result, methods={"S-PSR": replace(result.methods["S-PSR"], magnitude=magnitude)}))
    assert "25\N{NO-BREAK SPACE}% at layer\N{NO-BREAK SPACE}2" in figure.layout.annotations[0].text.replace("<br>", " ")


def test_many_tokens_are_thinned_the_same_way_each_time():
    result = comparison(("<a>", *["w"] * 999), responses=3)
    figure = plots.magnitude_distribution(result)
    drawn = next(trace for trace in figure.data if trace.type == "violin" and trace.name == "prompt")
    column = np.log10(result.magnitude[:, 0].numpy())
    assert len(drawn.y) == 401
    assert drawn.y.min() == pytest.approx(column.min())
    assert drawn.y.max() == pytest.approx(column.max())
    assert np.median(drawn.y) == pytest.approx(np.median(column), abs=0.01)
    assert "401 of 3,000 tokens" in figure.layout.annotations[-1].text.replace("<br>", " ")
    assert figure.to_json() == plots.magnitude_distribution(result).to_json()


def test_many_layers_have_quantile_bands_in_place_of_violins():
    result = comparison(layers=distribution.MAX_VIOLINS + 1)
    figure = plots.magnitude_distribution(result)
    assert {trace.type for trace in figure.data} == {"scatter"}
    median = next(trace for trace in figure.data if trace.name == "A-PSR, median")
    ordered = result.methods["A-PSR"].magnitude.sort(dim=0).values
    np.testing.assert_allclose(median.y, ordered[round(0.5 * (len(ordered) - 1))].log10().numpy(), rtol=1e-5)
    wide, narrow = (trace for trace in figure.data if trace.name == "A-PSR")
    upper, lower = np.split(np.array(narrow.y), 2)
    np.testing.assert_allclose(upper, ordered[round(0.75 * (len(ordered) - 1))].log10().numpy(), rtol=1e-5)
    np.testing.assert_allclose(lower[::-1], ordered[round(0.25 * (len(ordered) - 1))].log10().numpy(), rtol=1e-5)
    assert max(wide.y) == pytest.approx(float(ordered[-1].max().log10()))
    # S-PSR acts from layer 2 on: nothing is drawn before
    (start,) = {min(trace.x) for trace in figure.data if trace.name == "S-PSR"}
    assert start == 2
    assert next(trace for trace in figure.data if trace.name == "S-PSR, median").y[1] is None
    assert "violin" in {trace.type for trace in plots.magnitude_distribution(comparison(layers=distribution.MAX_VIOLINS)).data}
    assert [int(text) for text in plots.magnitude_distribution(comparison(layers=60)).layout.xaxis.ticktext] == list(
        range(0, 60, 4)
    )


# Style


def test_one_colour_a_method_in_every_figure(result):
    colours = {name: each.color for name, each in style.method_styles(result).items()}
    rmse = plots.relative_rmse(result)
    spread = plots.magnitude_distribution(result)
    for name in METHODS:
        assert named(rmse, name).line.color == colours[name]
        assert next(trace for trace in spread.data if trace.type == "violin" and trace.name == name).line.color == colours[name]
        assert plots.coefficient_text(result, name, layer=2).data[0].marker.color == colours[name]
    assert plots.coefficient_text(result, "A-PSR").data[1].marker.color == colours["prompt"] == style.PALETTE["prompt"]


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
        plots.coefficient_text(result, "A-PSR"),
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
            lambda result: plots.coefficient_text(result, "CAA"),
            "method: got 'CAA', expected one of 'A-PSR', 'S-PSR', 'S-Const DiM'",
        ),
        (lambda result: plots.coefficient_text(result, "prompt"), "The prompt is always shown"),
        (lambda result: plots.coefficient_text(result, "A-PSR", 9), "triplet: got 9"),
        (
            lambda result: plots.coefficient_text(result, "S-PSR", layer=3),
            "layer: got 3, expected a layer at which 'S-PSR' acts (2). Leave it out",
        ),
    ],
)
def test_errors_say_what_to_do(result, call, message):
    with pytest.raises(InputError) as caught:
        call(result)
    assert message in str(caught.value)
