"""Figures of directions, tokens and parts of a block hold the numbers of their results."""

import inspect
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from drawn_figures import NOT_FIGURES, calls_of
from made_up_results import METHODS, captured, comparison, lens

import psr_lens as psr
from psr_lens import plots
from psr_lens.activations.statistics import CapturedStatistics
from psr_lens.errors import InputError
from psr_lens.interpretation.directions import LensRow, LogitLens, TopToken, TopTokens, cosines
from psr_lens.plots import cosines as cosine_plot
from psr_lens.plots import rank, scatter, sliders_and_buttons, text_strips
from psr_lens.plots.scatter import SymLog


def test_the_lens_shows_both_ends_with_the_strongest_outside():
    figure = plots.logit_lens(lens(), columns=2)
    (trace,) = figure.data
    np.testing.assert_allclose(trace.z[1], [8.0, 7.0, -6.0, -7.0])
    assert list(trace.customdata[0]) == ["&lt;b&gt;arr&lt;/b&gt;", "w1", "w3", "w4"]
    assert trace.zmax == -trace.zmin == 9
    assert list(figure.layout.yaxis.ticktext) == ["layer 0", "layer 1", "layer 2"]
    assert "Directions" in figure.layout.title.text
    assert "Probes" in plots.logit_lens(replace(lens(), part="weights")).layout.title.text


def test_several_directions_of_a_site_are_numbered_and_those_of_many_layers_have_a_slider():
    one = lens(1).rows[0]
    figure = plots.logit_lens(LogitLens("directions", (one, replace(one, direction=1))))
    assert [text.split("<")[0].strip() for text in figure.layout.yaxis.ticktext] == ["layer 0", "layer 0"]
    assert "#1" in figure.layout.yaxis.ticktext[1]
    some = [replace(row, direction=direction) for row in lens(30).rows for direction in (0, 1)]
    figure = plots.logit_lens(LogitLens("directions", tuple(some)))
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == [str(layer) for layer in range(30)]
    assert [len(trace.z) for trace in figure.data] == [2] * 30
    assert [trace.visible for trace in figure.data] == [layer == 15 for layer in range(30)]
    assert {trace.zmax for trace in figure.data} == {max(float(row.suppressed_logits.abs().max()) for row in some)}
    assert slider.steps[3].args[1]["yaxis"]["ticktext"][0].startswith("layer 3 ")
    one_layer = tuple(replace(one, direction=direction) for direction in range(60))
    assert "The first 48 of 60" in plots.logit_lens(LogitLens("directions", one_layer)).layout.annotations[-1].text


def test_several_lenses_stand_side_by_side_matched_by_hook_point_and_direction():
    first, second = lens(3), lens(3, k=6)
    second = replace(second, rows=(second.rows[2], second.rows[0]), lens="jacobian", part="weights")
    figure = plots.logit_lens({"prompt": first, "A <b>": second}, columns=2)
    values, tokens = np.array(figure.data[0].z), np.array(figure.data[0].customdata)
    assert values.shape == (3, 4)
    for layer, row in enumerate(first.rows):
        np.testing.assert_allclose(values[layer, :2], row.promoted_logits[:2])
    np.testing.assert_allclose(values[0, 2:], second.rows[1].promoted_logits[:2])
    np.testing.assert_allclose(values[2, 2:], second.rows[0].promoted_logits[:2])
    assert np.isnan(values[1, 2:]).all()  # which the second lacks
    assert tokens[1].tolist() == ["&lt;b&gt;arr&lt;/b&gt;", "w1", "", ""]
    assert figure.layout.xaxis.ticktext == ("prompt", "A &lt;b&gt;")
    assert figure.layout.title.text == "Directions and probes through two lenses"
    assert len(figure.layout.shapes) == 1


def test_several_lenses_of_many_layers_have_one_slider_and_one_scale():
    many = replace(lens(), rows=tuple(replace(row, direction=at) for row in lens(30).rows for at in range(4)))
    figure = plots.logit_lens({"one": many, "other": replace(many, rows=many.rows[8:])})
    assert len(figure.layout.sliders[0].steps) == 30
    assert len({(trace.zmin, trace.zmax) for trace in figure.data}) == 1
    assert all(np.array(trace.z).shape == (4, 6) for trace in figure.data)
    with pytest.raises(InputError, match="lens: got no directions"):
        plots.logit_lens({"one": many, "none": replace(many, rows=())})
    with pytest.raises(InputError, match="lens: got no directions"):
        plots.logit_lens({})


def test_the_cosine_matrix_is_the_results_and_parts_its_sources():
    generator = torch.Generator().manual_seed(0)
    source = {f"blocks.{layer}.hook_resid_post": torch.randn(1, 8, generator=generator) for layer in range(3)}
    found = cosines({"A-PSR": source, "CAA <i>": {name: -vectors for name, vectors in source.items()}})
    figure = plots.cosine_matrix(found)
    np.testing.assert_allclose(figure.data[0].z, found.matrix.numpy())
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-1, 1)
    assert [note.text for note in figure.layout.annotations] == ["A-PSR", "A-PSR", "CAA &lt;i&gt;", "CAA &lt;i&gt;"]
    assert len(figure.layout.shapes) == 2  # one line each way between the two sources
    assert list(figure.layout.xaxis.ticktext) == ["0", "1", "2", "0", "1", "2"]


def test_many_sites_are_thinned_source_by_source_and_the_note_says_so():
    source = {f"blocks.{layer}.hook_resid_post": torch.eye(4)[layer % 4][None] for layer in range(80)}
    figure = plots.cosine_matrix(cosines({"one": source, "two": source}))
    assert figure.data[0].z.shape == (80, 80)
    assert "80 of 160 sites" in figure.layout.annotations[-1].text
    assert cosine_plot.MAX_SITES >= 80


def test_rank_energy_is_the_shares_of_the_statistics(organism, pirate_triplets):
    statistics = psr.capture(organism.model, pirate_triplets[:10], "resid_post", to=psr.Statistics(rank=5))
    figure = plots.rank_energy(statistics)
    for trace, (name, found) in zip(figure.data, statistics.overall.items(), strict=True):
        energies = found.singular_values.double().square()
        np.testing.assert_allclose(trace.y, (energies.cumsum(0) / found.energy).numpy(), rtol=1e-5)
        assert trace.name == f"layer {name.split('.')[1]}"
    assert len(plots.rank_energy(statistics, ["blocks.2.hook_resid_post"]).data) == 1
    with pytest.raises(InputError, match=r"hook: got 'blocks.9.hook_resid_post'"):
        plots.rank_energy(statistics, ["blocks.9.hook_resid_post"])
    nothing = CapturedStatistics({name: replace(found, energy=0.0) for name, found in statistics.overall.items()}, {}, "R")
    with pytest.raises(InputError, match="without a difference"):
        plots.rank_energy(nothing)
    many = CapturedStatistics({f"blocks.{layer}.hook_resid_post": found for layer in range(40)}, {}, "R")
    assert len(plots.rank_energy(many).data) <= rank.MAX_LINES


@pytest.mark.parametrize("method", METHODS)
def test_scatter_points_are_the_coefficients_and_the_projections(method):
    result = comparison()
    trace = result.methods[method]
    figure = plots.coefficient_scatter(result, method)
    drawn = [each for each in figure.data if each.mode == "markers"]
    assert len(drawn) == len(trace.site_layers)
    for site, each in enumerate(drawn):
        points = sorted(map(tuple, each.customdata.tolist()))
        assert points == sorted(zip(trace.projection[:, site].tolist(), trace.coefficient[:, site].tolist(), strict=True))
        heading = figure.layout.annotations[site].text
        assert heading.startswith(f"layer {trace.site_layers[site]}<br>")
        pair = np.stack([trace.coefficient[:, site].numpy(), trace.projection[:, site].numpy()]).astype(float)
        less, equal = (how(pair[:, None, :], pair[:, :, None]).sum(axis=2) for how in (np.less, np.equal))
        ranks = less + (equal + 1) / 2  # equal numbers share their mean rank
        if "Const" in method:
            assert heading.endswith("no spread")
        else:
            r, rho = (f"{np.corrcoef(values)[0, 1]:.2f}".replace("-", "−") for values in (pair, ranks))
            assert heading.endswith(f"r = {r}<br>ρ = {rho}")
        unit = SymLog.of(pair[1]).unit
        np.testing.assert_allclose(each.x, [np.sign(x) * np.log10(1 + abs(x) / unit) for x, _ in each.customdata], rtol=1e-4)


def test_a_constant_whose_lengths_differ_by_rounding_has_no_spread():
    result = comparison()
    trace = result.methods["S-Const DiM"]
    rounded = replace(trace, coefficient=trace.coefficient * (1 + 1e-7 * torch.rand_like(trace.coefficient)))
    figure = plots.coefficient_scatter(replace(result, methods={"CAA": rounded}), "CAA")
    assert figure.layout.annotations[0].text == "layer 2<br>no spread"


@pytest.mark.slow
def test_large_scatters_keep_the_strongest_tokens_and_say_what_they_left_out():
    result = comparison(("a", "b") * 1_000, responses=2, layers=20)
    figure = plots.coefficient_scatter(result, "A-PSR")
    drawn = [each for each in figure.data if each.mode == "markers"]
    assert len(drawn) == 20
    assert [step.label for step in figure.layout.sliders[0].steps] == [str(layer) for layer in range(20)]
    assert sum(each.visible for each in drawn) == 1
    assert all(len(each.x) == scatter.MAX_POINTS for each in drawn)
    assert drawn[0].customdata[:, 0].max() == pytest.approx(float(result.methods["A-PSR"].projection[:, 0].max()))
    assert "1,200 of 4,000 tokens" in figure.layout.annotations[-1].text.replace("<br>", " ")
    figure = plots.coefficient_scatter(comparison(responses=1, layers=80), "A-PSR")
    assert len(figure.layout.sliders[0].steps) == sliders_and_buttons.MAX_STEPS
    assert "32 of 80 layers" in figure.layout.annotations[-1].text.replace("<br>", " ")


def test_strips_hold_the_magnitudes_of_prompt_and_replacements_in_that_order():
    result = comparison()
    figure = plots.magnitude_strips(result, 1, layer=2)
    rows = result.tokens.rows(1)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [bar.name for bar in bars[:4]] == ["prompt", *METHODS]
    np.testing.assert_allclose(bars[0].customdata[:, 0], result.magnitude[rows, 2].numpy())
    np.testing.assert_allclose(bars[1].customdata[:, 0], result.methods["A-PSR"].magnitude[rows, 2].numpy())
    heights = np.stack([bar.y for bar in bars[:4]])
    assert (np.diff(heights, axis=0) > 0.94).all()  # each replacement below the one before
    assert bars[0].text[6] == "&lt;script&gt;alert(1…"
    assert [trace.name for trace in plots.magnitude_strips(result, 1, 3, ["S-PSR"]).data[:2]] == ["prompt", "S-PSR"]
    long = plots.magnitude_strips(comparison(("word",) * 1_000, responses=1))
    assert len(long.data[0].x) == text_strips.MAX_TOKENS
    assert "The first 300 of 1,000 tokens." in long.layout.annotations[-1].text.replace("<br>", " ")
    with pytest.raises(InputError, match="layer: got 9, expected a layer that was compared"):
        plots.magnitude_strips(result, layer=9)


def test_strips_do_not_overlap():
    figure = plots.magnitude_strips(comparison(("a", "long" * 8, "\n", "b") * 20, responses=1))
    bar = figure.data[0]
    for line in set(bar.y):
        at = [place for place, height in enumerate(bar.y) if height == line]
        ends = [(bar.base[place], bar.base[place] + bar.x[place]) for place in at]
        assert all(left[1] < right[0] + 1e-9 for left, right in itertools.pairwise(ends))


def test_kinds_are_panels_of_the_norms_of_what_was_captured():
    found = captured()
    figure = plots.magnitude_by_kind(found, kinds=["attn_out", "resid_post"])
    assert [trace.name for trace in figure.data] == ["attention", "residual"]
    for trace, kind in zip(figure.data, ("attn_out", "resid_post"), strict=True):
        wanted = torch.stack([found.deltas[f"blocks.{layer}.hook_{kind}"].norm(dim=1) for layer in range(3)], dim=1)
        np.testing.assert_allclose(trace.customdata[..., 0], wanted.numpy(), rtol=1e-6)
        np.testing.assert_allclose(trace.customdata[..., 2], 0.5, rtol=1e-6)  # ‖A‖ is made up as twice ‖Δ‖
    assert (
        "What each layer adds" in plots.magnitude_by_kind(replace(found, difference="local"), kinds=["attn_out"]).layout.title.text
    )
    with pytest.raises(InputError, match="kinds: got 'mlp_out', expected kinds that were captured"):
        plots.magnitude_by_kind(found)
    with pytest.raises(InputError, match="kinds: got 'attention', expected one of"):
        plots.magnitude_by_kind(found, kinds=["attention"])
    with pytest.raises(InputError, match="kinds: got none"):
        plots.magnitude_by_kind(found, kinds=[])
    with pytest.raises(InputError, match="triplet: got 3"):
        plots.magnitude_by_kind(found, 3, ["attn_out"])


def test_a_large_capture_is_pooled_and_small_to_send():
    figure = plots.magnitude_by_kind(captured(2_000, 64), kinds=["attn_out", "resid_post"])
    assert figure.data[0].z.shape == (400, 64)
    assert "furthest from 0 of 5 tokens" in figure.layout.annotations[-1].text.replace("<br>", " ")
    assert len(figure.to_json()) < 4_000_000


def test_top_tokens_are_rows_of_distinct_tokens_with_a_dot_for_each_place():
    one = TopToken(3.5, "aye", ("<assistant>", "<b>"), (",", "the"), 4, 0)
    arr = TopToken(3.0, "arr", ("<assistant>",), (",",), 1, 0)
    found = TopTokens("blocks.2.hook_resid_post", 2, None, (one, arr, replace(one, coefficient=2.0, position=-1)), 1_200, 35)
    figure = plots.top_tokens(found)
    dots, lines = figure.data
    assert list(dots.x) == [3.5, 2.0, 3.0]
    assert dots.y[0] == dots.y[1] != dots.y[2]
    assert (lines.x, lines.y[0]) == ((2.0, 3.5, None, 3.0, 3.0, None), dots.y[0])
    assert [re.sub("<[^>]*>", "", label) for label in figure.layout.yaxis.ticktext] == ["aye ×2", "arr"]
    assert list(dots.customdata[1]) == [2.0, 4, "−1"]
    assert all("<b>aye</b>" in text and "&lt;b&gt;" in text for text in (dots.hovertext[0], figure.layout.annotations[0].text))
    told = figure.layout.annotations[-1].text.replace("<br>", " ")
    assert "35 of 1,200 tokens" in told
    assert "The 3 pushed hardest, one row for each distinct token" in told
    with pytest.raises(InputError, match="no token with a coefficient other than 0 among 1,200"):
        plots.top_tokens(replace(found, tokens=()))


def test_the_same_token_of_twenty_answers_is_one_row():
    one = TopToken(9.0, "<end>", ("a",), (), 0, 3)
    found = TopTokens("blocks.0.hook_resid_post", 0, None, tuple(replace(one, triplet=at) for at in range(20)), 100, 20)
    figure = plots.top_tokens(found)
    assert len(figure.layout.yaxis.ticktext) == 1
    assert len(figure.data[0].x) == 20
    assert figure.layout.height < 200


def test_the_context_of_a_token_is_its_sentence_as_far_as_there_is_room():
    words = ("one .", *(f"w{at}" for at in range(20)))
    one = TopToken(1.0, "aye", words, ("x", ".", "next"), 0, 0)
    found = TopTokens("blocks.0.hook_resid_post", 0, None, (one,), 9, 9)

    def context(**look):
        return re.sub("<[^>]*>", "", plots.top_tokens(found, **look).layout.annotations[0].text)

    assert context(width=1200) == " ".join(words[1:]) + " aye x ."
    assert context().startswith("…")
    assert context().endswith("aye x .")
    whole = re.sub("<[^>]*>", "", plots.top_tokens(found).data[0].hovertext[0])
    assert len(whole) > len(context())


def test_pushes_of_very_different_sizes_are_on_a_log_axis():
    tokens = tuple(TopToken(value, text, (), (), 0, 0) for text, value in {"a": 100.0, "b": 1.0}.items())
    figure = plots.top_tokens(TopTokens("blocks.0.hook_resid_post", 0, None, tokens, 9, 9))
    assert list(figure.data[0].x) == [2.0, 0.0]
    assert list(figure.layout.xaxis.ticktext) == ["1", "10", "100"]
    backwards = tuple(replace(each, coefficient=-each.coefficient) for each in tokens)
    figure = plots.top_tokens(TopTokens("blocks.0.hook_resid_post", 0, None, backwards, 9, 9))
    assert list(figure.layout.xaxis.ticktext) == ["−1", "−10", "−100"]
    assert "Orange: pushed backwards" in figure.layout.annotations[-1].text.replace("<br>", " ")


def test_a_row_of_a_lens_and_a_token_are_shown_on_one_line():
    row = LensRow("blocks.1.hook_mlp_out", 1, 0, ("a", "b"), torch.ones(2), ("x", "y"), -torch.ones(2))
    assert repr(row) == "LensRow(blocks.1.hook_mlp_out, direction 0: promotes 'a', 'b'; suppresses 'x', 'y')"
    assert repr(TopToken(3.5, "aye", ("b",), (",",), 4, 0)) == "TopToken('aye', 3.5, position 0 of response 4)"


@pytest.fixture(scope="module")
def every_figure(tiny_llama):
    return {function: call() for function, call in calls_of(tiny_llama.model).items()}


def test_every_figure_is_plain_json(every_figure):
    """Strict JSON without NaN or infinity, which browsers refuse, and nothing is lost on the way through it."""
    assert {figure.__name__ for figure in every_figure} == set(plots.__all__) - NOT_FIGURES

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    for function, figure in every_figure.items():
        read = json.loads(figure.to_json(), parse_constant=refuse)
        again = go.Figure(read)
        assert json.loads(again.to_json()) == read, function.__name__
        assert [trace.type for trace in again.data] == [trace.type for trace in figure.data]
        assert again.layout.title.text == figure.layout.title.text
        assert again.layout.title.text


FIRST_ARGUMENTS = {"curve", "grid", "captured", "lens", "result", "statistics", "table"}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [[1], None, "pirate", 3], ids=str)
def test_a_wrong_type_of_result_is_refused_by_every_figure(wrong):
    for name in sorted(set(plots.__all__) - {*NOT_FIGURES, "by_response"}):
        figure = getattr(plots, name)
        argument = next(iter(inspect.signature(figure).parameters))
        assert argument in FIRST_ARGUMENTS
        got = "a list" if isinstance(wrong, list) else re.escape(repr(wrong))
        others = {"method": "A-PSR"} if name.startswith("coefficient_") and name != "coefficient_correlation" else {}
        others |= {"ceiling": "prompt", "floor": "none"} if name == "rungs" else {}
        with pytest.raises(InputError, match=rf"^{argument}: got {got}, expected .*(psr|gradient descent|`table` method)"):
            figure(wrong, **others)
    with pytest.raises(InputError, match=r"^result: got "):
        plots.by_response(plots.magnitude_strips, wrong)
    with pytest.raises(InputError, match=r"^figure: got relative_rmse, expected a function with an argument `triplet`"):
        plots.by_response(plots.relative_rmse, comparison())


@pytest.mark.usefixtures("unchecked")
def test_the_message_says_what_makes_the_result():
    for call, message in (
        (plots.relative_rmse, "result: got an empty list, expected a Comparison from `psr.compare`."),
        (plots.head_map, "result: got an empty list, expected an Attribution from `psr.attribute`."),
        (
            plots.pareto,
            "result: got an empty list, expected an Evaluation from `psr.evaluate` or a ResultTable from the `table` method of a result.",
        ),
    ):
        with pytest.raises(InputError) as caught:
            call([])
        assert str(caught.value) == message
    for index in ("first", 1.0, True, 9):
        with pytest.raises(InputError, match=f"^triplet: got {index!r}, expected "):
            plots.magnitude_heatmap(comparison(), index)
    assert plots.magnitude_heatmap(comparison(), np.int64(1)) == plots.magnitude_heatmap(comparison(), 1)
