"""A slider over responses shows one response's own figure at a time."""

import json

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
        (plots.coefficient_text, {"method": "A-PSR"}),
    ],
)
def test_each_step_brings_one_responses_traces_and_layout(figure, options):
    result = comparison()
    shown = plots.by_response(figure, result, [2, 0], **options)
    (slider,) = shown.layout.sliders
    assert [step.label for step in slider.steps] == ["2", "0"]
    own = [figure(result, triplet=triplet, **options) for triplet in (2, 0)]
    count = len(own[0].data)
    for place, (step, each) in enumerate(zip(slider.steps, own, strict=True)):
        visible, layout = step.args
        some = [trace for trace, seen in zip(shown.data, visible["visible"], strict=True) if seen]
        assert visible["visible"].index(True) == place * count
        assert [trace.update(visible=None) for trace in some] == list(each.data)
        assert layout["yaxis"] == json.loads(each.to_json())["layout"]["yaxis"]
        assert layout["height"] - each.layout.height == layout["margin"]["t"] - each.layout.margin.t > 0
    assert shown.layout.height == slider.steps[0].args[1]["height"]


def test_the_first_responses_are_shown_and_a_picture_shows_the_first():
    shown = plots.by_response(plots.magnitude_heatmap, comparison(responses=FIRST + 2))
    assert len(shown.layout.sliders[0].steps) == FIRST
    assert [trace.visible for trace in shown.data] == [place == 0 for place in range(FIRST) for _ in range(1 + len(METHODS))]


@pytest.mark.parametrize(
    ("figure", "result", "options"),
    [(plots.magnitude_by_kind, captured(), {"kinds": ["resid_post"]}), (plots.patch_map, grid(), {})],
)
def test_other_results_with_tokens_can_be_browsed_too(figure, result, options):
    assert len(plots.by_response(figure, result, **options).layout.sliders[0].steps) == len(result.tokens.triplet.unique())


def test_no_responses_are_refused():
    with pytest.raises(InputError, match="triplets: got none, expected at least one response"):
        plots.by_response(plots.magnitude_heatmap, comparison(), [])
