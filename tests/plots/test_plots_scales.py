"""Scales are what they are said to be, the default makes layers comparable, and tokens stand where the reader expects them."""

import base64
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_results import METHODS, WORDS, captured, comparison

from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.plots.scales import MANY_LAYERS
from psr_lens.plots.sliders_and_buttons import steps_of
from psr_lens.plots.text_layout import in_lines, line_length
from psr_lens.prompts.token_text import joined, readable, word_starts

NAMES = ["absolute", "layer", "relative", "projection", "cosine"]


def buttons(figure):
    """What each button of a figure draws, by its label and trace by trace, and how it changes the layout."""
    (menu,) = figure.layout.updatemenus
    found = {}
    for button in menu.buttons:
        changes, layout, _ = button.args
        ((_, packed),) = changes.items()
        arrays = [np.frombuffer(base64.b64decode(each["bdata"]), np.float32) for each in packed]
        shapes = [each.get("shape", str(len(array))) for each, array in zip(packed, arrays, strict=True)]
        found[button.label] = ([a.reshape([int(n) for n in s.split(",")]) for a, s in zip(arrays, shapes, strict=True)], layout)
    return found


def defined(result, name):
    """The five scales of one panel, from their definitions, in numpy."""
    prompt = result.magnitude.double().numpy()
    trace = result if name == "prompt" else result.methods[name]
    magnitude, component = trace.magnitude.double().numpy(), trace.component.double().numpy()
    mean = result.component.double().numpy().mean(axis=0)
    with np.errstate(invalid="ignore"):
        return {
            "absolute": magnitude,
            "layer": magnitude / np.median(prompt, axis=0),
            "relative": magnitude / result.base_norm.double().numpy(),
            "projection": component / mean,
            "cosine": np.where(magnitude > 0, component / magnitude, np.nan),
        }


@pytest.mark.parametrize("name", ["prompt", *METHODS])
def test_heatmap_and_strips_draw_every_scale_as_it_is_defined(name):
    result = comparison()
    rows, position = slice(len(WORDS), 2 * len(WORDS)), ["prompt", *METHODS].index(name)
    heatmap, strips = plots.magnitude_heatmap(result, 1), plots.magnitude_strips(result, 1, layer=3)
    for scale, wanted in defined(result, name).items():
        index = NAMES.index(scale)
        np.testing.assert_allclose(heatmap.data[position].customdata[..., index], wanted[rows], rtol=1e-4)
        np.testing.assert_allclose(strips.data[position].customdata[:, index], wanted[rows, 3], rtol=1e-4)
        for figure, numbers in ((heatmap, wanted[rows]), (strips, wanted[rows, 3])):
            drawn, layout = buttons(figure)[scale]
            low = layout["coloraxis.cmin"]
            if scale in ("absolute", "layer", "relative"):
                numbers = np.log10(np.maximum(numbers, 10.0**low))
            np.testing.assert_allclose(drawn[position], numbers, rtol=1e-3, atol=1e-4)


def test_the_button_that_is_pressed_is_what_is_drawn():
    result = comparison()
    for scale in NAMES:
        figure = plots.magnitude_heatmap(result, 2, scale=scale)
        drawn, layout = buttons(figure)[scale]
        np.testing.assert_allclose(figure.data[0].z, drawn[0], rtol=1e-6)
        assert figure.layout.updatemenus[0].active == NAMES.index(scale)
        axis = figure.layout.coloraxis
        assert (axis.cmin, axis.cmax, axis.colorbar.title.text) == tuple(
            layout[f"coloraxis.{key}"] for key in ("cmin", "cmax", "colorbar.title.text")
        )
        again = plots.magnitude_heatmap(result, 0, scale=scale).layout.coloraxis
        assert (again.cmin, again.cmax) == (axis.cmin, axis.cmax)


@pytest.mark.parametrize("figure", [plots.magnitude_heatmap, plots.magnitude_strips])
@pytest.mark.parametrize(("layers", "scale"), [(MANY_LAYERS, "absolute"), (MANY_LAYERS + 1, "layer")])
def test_many_layers_are_shown_in_units_of_their_own_median(figure, layers, scale):
    (menu,) = figure(comparison(responses=1, layers=layers)).layout.updatemenus
    assert menu.buttons[menu.active].label == scale
    (menu,) = plots.magnitude_by_kind(captured(layers=layers), kinds=["attn_out"]).layout.updatemenus
    assert menu.buttons[menu.active].label == scale


def test_kinds_are_measured_against_their_own_hook_points():
    found = captured()
    figure = plots.magnitude_by_kind(found, kinds=["attn_out", "resid_post"], scale="cosine")
    for trace, kind in zip(figure.data, ("attn_out", "resid_post"), strict=True):
        for layer in range(3):
            delta = found.deltas[f"blocks.{layer}.hook_{kind}"].double()
            mean = delta.mean(dim=0)
            cosine = torch.nn.functional.cosine_similarity(delta, mean[None])
            np.testing.assert_allclose(trace.z[:, layer], cosine.numpy(), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(
                trace.customdata[:, layer, 3], (delta @ mean / mean.square().sum()).numpy(), rtol=1e-4, atol=1e-6
            )
            norms = delta.norm(dim=1)
            np.testing.assert_allclose(trace.customdata[:, layer, 1], (norms / np.median(norms)).numpy(), rtol=1e-4)


def test_results_without_norms_and_projections_keep_the_other_scales():
    result = comparison()
    bare = {name: replace(trace, component=None) for name, trace in result.methods.items()}
    old = replace(result, base_norm=None, component=None, methods=bare)
    for figure in (plots.magnitude_heatmap, plots.magnitude_strips):
        assert list(buttons(figure(old, 0, methods=["A-PSR"]))) == ["absolute", "layer"]
        with pytest.raises(
            InputError, match=r"^scale: got 'cosine', expected a scale that this result has numbers for \('absolute', 'layer'\)"
        ):
            figure(old, scale="cosine")
    with pytest.raises(InputError, match=r"^scale: got 'relative'"):
        plots.magnitude_by_kind(replace(captured(), base_norms={}), kinds=["attn_out"], scale="relative")


def test_a_layer_without_any_effect_is_blank_and_still_drawn():
    result = comparison()
    magnitude, component = result.magnitude.clone(), result.component.clone()
    magnitude[:, 1] = component[:, 1] = 0
    figure = plots.magnitude_heatmap(replace(result, magnitude=magnitude, component=component))
    for scale, (drawn, layout) in buttons(figure).items():
        assert np.isnan(drawn[0][:, 1]).all() == (scale in ("layer", "projection", "cosine"))
        assert np.isfinite(drawn[0][:, 0]).all()
        assert np.isfinite([layout["coloraxis.cmin"], layout["coloraxis.cmax"]]).all()


@pytest.mark.parametrize("layer", [0, 3])
def test_predicted_words_are_those_after_the_ones_read(layer):
    result = comparison()
    read, predicted = (plots.magnitude_strips(result, 1, layer=layer, word=word) for word in ("read", "predicted"))
    assert predicted.data[0].text == read.data[0].text[1:]
    for one, other in zip(read.data[:4], predicted.data[:4], strict=True):
        np.testing.assert_array_equal(other.customdata, one.customdata[:-1])
    read, predicted = (plots.magnitude_heatmap(result, 1, word=word) for word in ("read", "predicted"))
    assert list(predicted.layout.yaxis.ticktext) == list(read.layout.yaxis.ticktext)[1:]
    np.testing.assert_array_equal(predicted.data[1].customdata, read.data[1].customdata[:-1])
    notes = [figure.layout.annotations[-1].text.replace("<br>", " ") for figure in (read, predicted)]
    assert notes[0].startswith("A token stands for the activation after it was read")
    assert notes[1].startswith("A token stands for the activation that decided it")


@pytest.mark.parametrize(
    ("tokens", "starts", "text"),
    [
        (["ĠPour", "Ġt", "Ã©", "lÃ©", "phones", ",", "Ġle"], [True, True, False, False, False, False, True], "Pour téléphones, le"),
        (["▁cha", "ts", "▁et", "▁", "chien", "<0x0A>"], [True, False, True, True, True, False], "chats et ␣ chien↵"),
        (["aye", ",", "the", "barn"], [True] * 4, "aye , the barn"),
        (["Ġen", "ĠÃ", "ª", "tre"], [True, True, False, False], "en ê·tre"),  # one character in two tokens
        (["▁", "<0xE2>", "<0x82>", "<0xAC>", "▁et", "<0xC3>"], [True, True, False, False, True, False], "␣ €·· et‹C3›"),
        (["Ġle", "ª", "Ã", "ª"], [True, False, False, False], "le‹AA›ê·"),
        (["Ġoui", ".", "<|im_end|>", "Non"], [True, False, True, True], "oui. <|im_end|> Non"),
    ],
)
def test_tokens_of_one_word_have_no_space_between_them(tokens, starts, text):
    assert word_starts(tokens) == starts
    assert joined(tokens) == text


def test_lines_keep_words_whole_and_letters_in_their_places():
    tokens = ["Ġanti", "const", "itution", "nellement"] * 3 + ["Ċ", "Ċ", "Ġun", "Ġmot"]
    texts = readable(tokens)
    placed = in_lines(texts, word_starts(tokens), ["↵" in text for text in texts])
    lines: dict[int, list[str]] = {}
    for token in placed:
        line = lines.setdefault(token.line, [" "] * (line_length() + 1))
        assert line[int(token.left) : int(token.left + token.width)] == [" "] * len(token.text)
        line[int(token.left) : int(token.left + token.width)] = token.text
    written = ["".join(line).rstrip() for line in lines.values()]
    assert written == ["anticonstitutionnellement", "anticonstitutionnellement", "anticonstitutionnellement↵↵", "un mot"]


@pytest.mark.parametrize(("count", "shown", "most"), [(30, 29, 32), (80, 79, 32), (80, 33, 32), (48, 7, 1), (3, 2, 2)])
def test_a_slider_offers_the_layer_that_is_shown_first(count, shown, most):
    steps = steps_of(count, shown, most)
    assert len(steps) == min(count, most)
    assert shown in steps
    assert steps == sorted(set(steps))
    if most > 2:
        assert {steps[0], steps[-1]} == {0, count - 1}
