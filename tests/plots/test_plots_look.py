"""Width, letters and theme of all figures: the same arguments, and what they change."""

import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from drawn_figures import NOT_FIGURES, calls_of
from made_up_results import comparison, grid, lens

import psr_lens as psr
from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.interpretation.directions import LogitLens
from psr_lens.plots import images, look
from psr_lens.plots.dark import dark_colors, on_dark
from psr_lens.plots.palette import DARK, INK, LETTERED, MUTED, PAPER
from psr_lens.plots.style import SMALL, fitted, in_lines_of, text_width


@pytest.fixture(scope="module")
def calls(tiny_llama):
    return calls_of(tiny_llama.model)


def lines_of(figure):
    """The lines of the note below a figure, which is the last of its annotations."""
    return figure.layout.annotations[-1].text.split("<br>")


def parts_of(trace, names):
    """Some attributes of a trace as text; markup of hover texts without its colours."""
    found = {name: value for name, value in trace.to_plotly_json().items() if name in names.split()}
    return re.sub("color:#[0-9a-fA-F]{6}", "", str(found))


def fonts(value, owner=""):
    """Sizes of letters anywhere in a figure's JSON."""
    if isinstance(value, dict):
        for name, each in value.items():
            if name == "size" and owner.lower().endswith("font") and isinstance(each, int | float):
                yield each
            yield from fonts(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from fonts(each, owner)


@pytest.mark.slow
def test_every_figure_is_as_wide_as_asked_for_and_otherwise_as_its_window(calls):
    assert {function.__name__ for function in calls} == set(plots.__all__) - NOT_FIGURES
    for function, call in calls.items():
        assert call().layout.width is None, function.__name__
        figure = call(width=700)
        assert (figure.layout.width, figure.layout.autosize) == (700, False), function.__name__


@pytest.mark.slow
def test_letters_twice_as_large_are_the_figure_of_half_the_width_twice_as_large(calls):
    for function, call in calls.items():
        small, large = call(width=400), call(width=800, font_size=24)
        assert large.layout.height == 2 * small.layout.height, function.__name__
        for side in "tblr":
            assert large.layout.margin[side] == 2 * small.layout.margin[side], function.__name__
        sizes = [sorted(fonts(json.loads(each.to_json()))) for each in (small, large)]
        assert sizes[1] == [2 * size for size in sizes[0]], function.__name__
        assert min(sizes[1]) >= 2 * SMALL
        assert [note.text for note in small.layout.annotations] == [
            re.sub(r"font-size:22px", "font-size:11px", note.text) for note in large.layout.annotations
        ], function.__name__
        for here, there in zip(small.data, large.data, strict=True):  # lengths in units of the data stay
            assert parts_of(here, "x y z width customdata") == parts_of(there, "x y z width customdata"), function.__name__


@pytest.mark.slow
def test_a_dark_figure_has_no_colour_of_a_light_page(calls):
    for function, call in calls.items():
        text = call(theme="dark").to_json().lower()
        for light in (INK, MUTED, PAPER):
            assert light not in text, f"{function.__name__}: {light}"
        figure = call(theme="dark")
        assert figure.layout.template.layout.paper_bgcolor == DARK[PAPER]
        assert figure.layout.template.layout.font.color == DARK[INK]


@pytest.mark.slow
def test_a_dark_figure_shows_the_same_numbers_and_words(calls):
    for function, call in calls.items():
        light, dark = call(), call(theme="dark")
        for here, there in zip(light.data, dark.data, strict=True):
            shown = "x y z customdata hovertemplate hovertext type name"
            assert parts_of(here, shown) == parts_of(there, shown), function.__name__
        assert light.layout.height == dark.layout.height


def contrast(one, other):
    def luminance(color):
        parts = np.array([int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_letters_can_be_read_on_strips_of_either_page():
    for shade in (*LETTERED[0], *LETTERED[1]):
        assert contrast(INK, shade) >= 4.5
        assert contrast(DARK[INK], on_dark(shade)) >= 4.5, shade


def test_letters_of_a_pressed_button_can_be_read_on_a_dark_page():
    """Plotly draws the pressed button in `#F4FAFF`, whatever its colour is said to be."""
    (menu,) = plots.magnitude_heatmap(comparison(), theme="dark").layout.updatemenus
    assert contrast(menu.font.color, "#F4FAFF") >= 4
    assert contrast(menu.font.color, menu.bgcolor) >= 4


def test_colours_that_the_table_lacks_are_lightened_and_what_is_no_colour_stays():
    assert contrast(on_dark("#0a0a60"), DARK[PAPER]) >= 3
    assert on_dark("#D55E00") == "#d55e00"
    assert on_dark("rgba(28,28,28,0.5)") == "rgba(233,231,226,0.5)"
    assert on_dark("red") == "red"


def test_the_colours_of_a_report_s_figures_are_those_of_figures_that_are_dark_themselves():
    shown = comparison()
    light, dark = (plots.relative_rmse(shown, theme=theme).data[0].line.color for theme in ("light", "dark"))
    found = dark_colors(['{"color":"' + light + '"}', '<i style=\\"color:#5F5F5F\\">', "rgba(28,28,28,0.5)"])
    assert found == {light.lower(): dark, "#5f5f5f": DARK[MUTED], "rgba(28,28,28,0.5)": "rgba(233,231,226,0.5)"}


def test_a_token_that_reads_like_a_colour_is_left_alone():
    figure = plots.magnitude_strips(comparison((INK, PAPER), responses=1), layer=0, theme="dark")
    assert INK in figure.data[0].text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 200}, "width: got 200, expected 300 pixels or more with letters of 12 pixels"),
        ({"width": 500, "font_size": 24}, "width: got 500, expected 600 pixels or more with letters of 24 pixels"),
        ({"width": "wide"}, "width: got 'wide', expected a whole number or None"),
        ({"font_size": 2}, "font_size: got 2.0, expected 6 to 48 pixels"),
        ({"font_size": None}, "font_size: got None, expected a number"),
        ({"theme": "auto"}, "theme: got 'auto', expected 'light' or 'dark'"),
    ],
)
def test_a_look_that_cannot_be_is_refused(given, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        plots.relative_rmse(comparison(), **given)


def test_a_failed_figure_leaves_no_look_behind():
    with pytest.raises(InputError, match="triplet"):
        plots.magnitude_strips(comparison(), 99, width=1_000)
    assert look.room() == look.NARROW


def test_an_argument_that_no_figure_has_is_pythons_error():
    with pytest.raises(TypeError, match="colour"):
        plots.relative_rmse(comparison(), colour="red")


@pytest.mark.slow
def test_notes_fill_the_line_and_begin_at_the_left_edge(calls):
    for function, call in calls.items():
        for width in (390, 1_024, 1_440):
            figure = call(width=width)
            if not figure.layout.annotations or figure.layout.annotations[-1].xshift is None:
                continue
            note = figure.layout.annotations[-1]
            if note.yanchor == "top" and note.yref == "paper" and note.y == 0:
                assert note.xshift == 10 - figure.layout.margin.l, function.__name__
                *full, _ = note.text.split("<br>")
                assert all(text_width(line, SMALL) > 0.7 * (width - 20) for line in full), f"{function.__name__}: {full}"
                assert all(text_width(line, SMALL) <= width - 20 for line in note.text.split("<br>"))


def test_a_note_of_the_heatmap_has_many_words_a_line():
    assert len(lines_of(plots.magnitude_heatmap(comparison()))[0].split()) >= 8
    assert len(lines_of(plots.magnitude_heatmap(comparison(), width=1_024))) == 1


def test_titles_of_patch_maps_take_one_line_of_a_phone():
    for what in plots.patching.WHAT:
        for measured in ("recovered", "lost"):
            one = grid()
            figure = plots.patch_map(type(one)(**{**vars(one), "what": what, "measured": measured}))
            assert "<br>" not in figure.layout.title.text


def test_text_has_longer_lines_in_a_wider_figure():
    result = comparison(("word",) * 60, responses=1)
    tall, wide = plots.magnitude_strips(result, layer=0), plots.magnitude_strips(result, layer=0, width=1_440)
    assert tall.layout.xaxis.range[1] == 40
    assert wide.layout.xaxis.range[1] > 150
    assert wide.layout.height < tall.layout.height / 2


def test_words_of_a_lens_fit_their_cells():
    rows = tuple(
        type(row)(**{**vars(row), "promoted": ("extraordinarily",) * 5, "suppressed": ("#" * 30,) * 5}) for row in lens().rows
    )
    found = LogitLens("directions", rows)
    for width in (390, 1_440):
        figure = plots.logit_lens(found, columns=3, width=width)
        room = (width - figure.layout.margin.l - figure.layout.margin.r) / 6
        assert all(text_width(text, SMALL) <= room for line in figure.data[0].text for text in line)
    assert "extraordinarily" in figure.data[0].text[0]


def test_long_texts_are_broken_and_cut_to_a_width():
    assert in_lines_of("a b", 1_000, 12) == ["a b"]
    assert in_lines_of("", 100, 12) == [""]
    broken = in_lines_of("x" * 100 + " y", 100, 12)
    assert "".join(broken).replace(" ", "") == "x" * 100 + "y"
    assert all(text_width(line, 12) <= 100 for line in broken)
    assert fitted("short", 100) == "short"
    assert fitted("much too long a text", 50).endswith("…")
    assert text_width("字" * 4, 10) == 40


def test_many_layers_of_several_sources_are_labelled_with_each_source_named_twice():
    generator = torch.Generator().manual_seed(0)

    def source(layers):
        return {f"blocks.{layer}.hook_resid_post": torch.randn(1, 8, generator=generator) for layer in layers}

    found = psr.cosines({"A-PSR": source(range(30)), "CAA": source([15])})
    for width in (None, 1_024, 1_440):
        figure = plots.cosine_matrix(found, width=width)
        names = [note.text for note in figure.layout.annotations]
        assert sorted(names) == ["A-PSR", "A-PSR", "CAA", "CAA"]
        assert list(figure.layout.yaxis.tickvals) == list(range(31))
        assert figure.layout.xaxis.ticktext[-1] == "15"
        pitch = ((width or 390) - figure.layout.margin.l - 78) / 31
        places = list(figure.layout.xaxis.tickvals)
        assert min(np.diff(places)) * pitch >= text_width("29", SMALL)
    assert places == list(range(31))  # at 1,440 pixels all of them


def test_axes_of_layers_begin_at_the_first(calls):
    figure = calls[plots.magnitude_distribution]()
    assert figure.layout.xaxis.range[0] > -1
    assert next(iter(figure.layout.xaxis.tickvals)) == 0


def test_floor_and_ceiling_are_named_on_lines_of_their_own(calls):
    notes = calls[plots.rungs]().layout.annotations
    shifts = {note.text.partition(":")[0]: note.yshift for note in notes}
    assert abs(shifts["floor"] - shifts["ceiling"]) >= SMALL


def test_images_have_the_width_that_the_figure_was_drawn_for(monkeypatch, tmp_path):
    given = {}

    def write(figures, files, width, height, **_):
        given.update(width=width, height=height)
        for file in files:
            open(file, "w").close()

    monkeypatch.setattr(images, "check_browser", lambda: None)
    monkeypatch.setattr(images.plotly.io, "write_images", write)
    pytest.importorskip("choreographer")
    figures = {
        "a": plots.relative_rmse(comparison(), width=640, font_size=18),
        "b": plots.relative_rmse(comparison()),
        "c": go.Figure(),
    }
    paths = plots.write_images(figures, tmp_path, ["pdf"])
    assert [path.name for path in paths] == ["a.pdf", "b.pdf", "c.pdf"]
    assert given["width"] == [640, images.WIDTH, images.WIDTH]
    assert given["height"][0] == figures["a"].layout.height
    plots.write_images(figures, tmp_path, ["pdf"], width=300)
    assert given["width"] == [300, 300, 300]
