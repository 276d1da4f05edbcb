"""A slider over responses shows one response's own figure at a time."""

import json

import plotly.graph_objects as go
import pytest
from made_up_results import METHODS, captured, comparison, grid

from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.plots.response_slider import FIRST


@pytest.mark.parametrize(
    ("figure", "options"),
    [
        (plots.magnitude_heatmap, {}),
        (plots.magnitude_strips, {"layer": 1}),
        (plots.magnitude_strips, {"layer": 2, "methods": ["S-PSR"]}),
    ],
)
def test_each_step_brings_one_responses_traces_and_layout(figure, options):
    result = comparison()
    shown = plots.by_response(figure, result, [2, 0], **options)
    (slider,) = shown.layout.sliders
    assert [step.label for step in slider.steps] == ["2", "0"]
    own = [figure(result, triplet=triplet, **options) for triplet in (2, 0)]
    count = len(own[0].data)
    for position, (step, each) in enumerate(zip(slider.steps, own, strict=True)):
        visible, layout = step.args
        some = [trace for trace, seen in zip(shown.data, visible["visible"], strict=True) if seen]
        assert visible["visible"].index(True) == position * count
        drawn, wanted = (go.Figure([trace.update(visible=None) for trace in traces]).to_json() for traces in (some, each.data))
        assert drawn == wanted
        own_layout = json.loads(each.to_json())["layout"]
        for key in ("yaxis", "xaxis"):
            assert {**json.loads(shown.to_json())["layout"], **layout}[key] == own_layout[key]
        height = layout.get("height", shown.layout.height)
        assert height - each.layout.height == layout.get("margin", {"t": shown.layout.margin.t})["t"] - each.layout.margin.t > 0


def test_buttons_act_on_all_responses_and_a_figure_with_its_own_slider_stays_at_one_layer():
    result = comparison()
    shown = plots.by_response(plots.magnitude_strips, result, methods=["A-PSR"])
    alone = plots.magnitude_strips(result, 1, layer=3, methods=["A-PSR"])
    count = len(alone.data)
    assert len(shown.data) == 3 * count
    assert len(shown.layout.sliders) == 1
    (menu,) = shown.layout.updatemenus
    assert [button.label for button in menu.buttons] == ["absolute", "layer", "relative", "projection", "cosine"]
    for button, own in zip(menu.buttons, alone.layout.updatemenus[0].buttons, strict=True):
        changes, layout, traces = button.args
        assert list(traces) == [response * count + bar for response in range(3) for bar in range(2)]
        assert layout == own.args[1]
        assert changes["marker.color"][2:4] == own.args[0]["marker.color"]


def test_the_first_responses_are_shown_and_a_picture_shows_the_first():
    shown = plots.by_response(plots.magnitude_heatmap, comparison(responses=FIRST + 2))
    assert len(shown.layout.sliders[0].steps) == FIRST
    assert [trace.visible for trace in shown.data] == [position == 0 for position in range(FIRST) for _ in range(1 + len(METHODS))]


@pytest.mark.parametrize(
    ("figure", "result", "options"),
    [(plots.magnitude_by_kind, captured(), {"kinds": ["resid_post"]}), (plots.patch_map, grid(), {})],
)
def test_other_results_with_tokens_can_be_browsed_too(figure, result, options):
    sliders = plots.by_response(figure, result, **options).layout.sliders
    responses = len(result.tokens.triplet.unique())
    assert [len(slider.steps) for slider in sliders] == ([responses] if responses > 1 else [])


def test_no_responses_are_refused():
    with pytest.raises(InputError, match="triplets: got none, expected at least one response"):
        plots.by_response(plots.magnitude_heatmap, comparison(), [])
