"""A report shows every type of result in a part of its own, says how to read it, and writes pictures where they can be drawn."""

import itertools
import sys
from dataclasses import replace

import plotly.graph_objects as go
import pytest
import torch
from helpers import random_replacement, random_triplets
from html_page import Page
from made_up_results import attribution, comparison, further_results, grid, lens, side_by_side, token_rows

import psr_lens as psr
from psr_lens.errors import InputError, MissingPackageError
from psr_lens.plots import images
from psr_lens.replacement import LearningCurve
from psr_lens.reporting.figures_by_result import RESULTS
from psr_lens.reporting.parts import Choice, Panel
from psr_lens.reporting.write import _files

PARTS = {
    "Trait against coherence": ["pareto"],
    "Faithfulness: next tokens and sites": ["next_token", "coefficient_correlation", "explained_energy"],
    "Distance from what prompts lead to": ["reach"],
    "Relative dose: how hard methods push": ["relative_dose"],
    "Where in a block the prompt acts": ["magnitude_distribution", "rank_energy", "magnitude_by_kind"],
    "Which heads read the instruction": ["head_map", "parts_by_layer", "source_map"],
    "Why heads attend to the instruction": ["score_parts"],
    "What is left with attention frozen": ["frozen_attention"],
    "Patching: which cells carry the effect": ["patch_map"] * 3 + ["patch_map"],
    "What the directions mean": ["logit_lens", "top_tokens", "cosine_matrix"],
    "Learning curves": ["learning_curve"],
}


FIGURE = go.Figure()


@pytest.fixture(scope="module")
def results(tiny_llama):
    return further_results(tiny_llama.model)


@pytest.fixture(scope="module")
def rich(results, tmp_path_factory):
    """A report with all of them."""
    return psr.report(comparison(), tmp_path_factory.mktemp("rich") / "report.html", also=results)


def test_each_type_of_result_has_its_figures_in_a_named_part_with_a_way_to_read_them(rich):
    page = Page(rich.read_text(encoding="utf-8"))
    titles = [title for title in PARTS if title in page.words]
    assert titles == list(PARTS)
    figures = [attrs["class"] for tag, attrs in page.tags if tag == "figure"]
    assert figures[10:] == list(itertools.chain(*PARTS.values()))
    captions = [attrs["aria-label"] for tag, attrs in page.tags if attrs.get("class") == "figure"]
    assert len(captions) == len(figures)
    assert all(len(caption) > 40 for caption in captions)
    assert "<b>arr" not in rich.read_text(encoding="utf-8")
    assert rich.stat().st_size < 8_000_000
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert len(links) == 1 + 1 + 3 + len(PARTS) + 1


def figures_of(path):
    page = Page(path.read_text(encoding="utf-8"))
    return [attrs["class"] for tag, attrs in page.tags if tag == "figure"]


def test_correlations_stand_in_the_headings_of_scatters_or_else_in_a_figure(tiny_llama, tmp_path):
    """One panel a layer for every method that varies; where other tokens, strengths or replacements were measured, a figure over layers."""
    model = tiny_llama.model
    triplets = random_triplets(model, 4)
    known = {"A-PSR": random_replacement(model, size=0.1), "S-PSR": random_replacement(model, layers=[1], size=0.1)}
    new = random_replacement(model, size=0.1, seed=1)
    compared = psr.compare(model, triplets, known)
    same = psr.faithfulness(model, triplets, known, token_budget=64)  # in other batches
    page = psr.report(compared, tmp_path / "r.html", also=[same])
    found = figures_of(page)
    assert found.count("coefficient_scatter") == 2
    assert "coefficient_correlation" not in found
    for name, sites in same.blocks[""].sites.items():
        assert all(f"r = {site.pearson.value:.2f}".replace("-", "\N{MINUS SIGN}") in page.read_text("utf-8") for site in sites), (
            name
        )
    for also in (
        psr.faithfulness(model, triplets, {**known, "new": new}),
        psr.faithfulness(model, triplets, {**known, "A-PSR": new}),
        psr.faithfulness(model, triplets, known, alpha=1.5),
        psr.faithfulness(model, triplets[:3], known),
        psr.faithfulness(model, [*triplets[:3], *random_triplets(model, 1, seed=1)], known),
        psr.faithfulness(model, {"one": triplets[:2], "two": triplets[2:]}, known),
    ):
        found = figures_of(psr.report(compared, tmp_path / "r.html", also=[also]))
        assert found.count("coefficient_correlation") == len(also.blocks)
    many = psr.report(comparison(layers=13), tmp_path / "r.html", also=[same])
    assert figures_of(many).count("coefficient_scatter") == 2  # A-PSR acts at 13 layers: one panel with a slider
    assert "coefficient_correlation" in figures_of(many)


def test_the_mean_over_a_single_response_is_not_shown_beside_it(tmp_path):
    one = replace(grid(), tokens=token_rows(1), values=grid().values[:5], effect=torch.ones(1))
    for patched, panels in ((grid(), 3), (one, 1)):
        found = figures_of(psr.report(comparison(), tmp_path / "r.html", also=[patched]))
        assert found.count("patch_map") == panels


def test_answers_come_first_as_text_with_their_scores(rich):
    page = Page(rich.read_text(encoding="utf-8"))
    first_figure = next(index for index, (tag, _) in enumerate(page.tags) if tag == "figure")
    assert any(attrs.get("class") == "answers" for _, attrs in page.tags[:first_figure])
    body = page.words[page.words.index("what is number 0 ?") :]
    first = body[: body.index("what is number 1 ?")]
    assert (
        " ".join(first.split())
        == "what is number 0 ? none trait 0 answer 0 prompt arr, matey A-PSR (α = 1.25) <script>alert(1)</script> 7 more questions"
    )
    second = body[body.index("what is number 1 ?") : body.index("what is number 2 ?")]
    assert " ".join(second.split()) == "what is number 1 ? none trait 0 answer 1 prompt trait 100 aye A-PSR (α = 1.25) (nothing)"
    assert "what is number 7 ?" in body
    assert "what is number 8 ?" not in body
    assert "The first 8 of 10 questions." in body


def test_what_is_wrong_is_named_by_its_place_beside_answers_too(tmp_path):
    with pytest.raises(InputError, match=r"also\[1\]: got 3"):
        psr.report(comparison(), tmp_path / "r.html", also=[side_by_side(), 3])


def test_the_heads_with_the_largest_share_and_the_patched_run_are_named(rich):
    words = Page(rich.read_text(encoding="utf-8")).words
    assert f"Largest: {', '.join(map(str, attribution().top_heads(4)))}." in words
    assert "The share of the prompt’s effect that each cell alone brings into the base run" in words


def test_results_go_to_the_section_that_they_are_given_for(tmp_path):
    both = {"pirate": comparison(), "shout": comparison()}
    path = psr.report(both, tmp_path / "r.html", also={"shout": [lens()]})
    parts = [attrs["id"] for tag, attrs in Page(path.read_text(encoding="utf-8")).tags if tag == "h3"]
    assert parts == ["s1-1", "s1-2", "s1-3", "s2-1", "s2-2", "s2-3", "s2-4"]


def test_a_fit_by_gradient_descent_is_named(tiny_llama, tmp_path):
    curve = LearningCurve((1.0, 0.5), (), (1.0, 1.0), 1)
    fitted = random_replacement(tiny_llama.model)
    object.__setattr__(fitted, "curve", curve)
    page = Page(psr.report(comparison(), tmp_path / "r.html", also=[fitted]).read_text(encoding="utf-8"))
    assert "Loss of random by epoch" in page.words
    with pytest.raises(InputError, match="curve: got None, expected the `curve` of a replacement that was fitted by gradient"):
        psr.report(comparison(), tmp_path / "r.html", also=[random_replacement(tiny_llama.model)])


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ([3], r"also\[0\]: got 3, expected one of AnswersByMethod, Evaluation, ResultTable, Faithfulness, Reach, Collateral, Capt"),
        ([lens(), comparison()], r"also\[1\]: got a Comparison, expected one of AnswersByMethod"),
    ],
)
def test_what_has_no_figures_is_refused_by_its_place(also, message, tmp_path):
    with pytest.raises(InputError, match=message):
        psr.report(comparison(), tmp_path / "r.html", also=also)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (lens(), "also: got a LogitLens, expected a list of values or a mapping of names to lists of values. Put it in brackets."),
        (3, "also: got 3, expected a list of values or a mapping of names to lists of values"),
        ([lens()], r"also: got one list for 2 comparisons, expected a mapping .* also=\{'pirate': \[…\]\}"),
        ({"sea": []}, "also: got the names 'sea', expected names in `result`: 'pirate', 'shout'"),
        ({"shout": lens()}, r"also\['shout'\]: got a LogitLens, expected a list of values. Put it in brackets."),
    ],
)
def test_further_results_must_say_whose_they_are(also, message, tmp_path):
    with pytest.raises(InputError, match=message):
        psr.report({"pirate": comparison(), "shout": comparison()}, tmp_path / "r.html", also=also)


def test_every_type_has_a_figure(results):
    there = {type(each) for each in results}
    assert {each.__name__ for each in set(RESULTS) - there} == {"Agreement", "Evaluation", "Replacement"}


# Pictures


def test_files_are_named_by_section_place_and_figure():
    from psr_lens.reporting.parts import Part

    panel = Panel("rank_energy", comparison_figure(), "how")
    parts = [Part("one", (panel, Choice((("a", (panel,)), ("b", (panel,))))))]
    assert list(_files({"only": parts})) == ["01-rank_energy", "02-rank_energy", "03-rank_energy"]
    assert list(_files({"Talk like a pirate.": parts, "…": parts}))[::3] == [
        "1-talk-like-a-pirate-01-rank_energy",
        "2-section-01-rank_energy",
    ]


def comparison_figure():
    return psr.plots.relative_rmse(comparison())


def test_without_kaleido_the_extra_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(MissingPackageError, match=r"kaleido is not installed. `pip install psr-lens\[static\]` brings it."):
        psr.report(comparison(), tmp_path / "r.html", static=tmp_path / "figures")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without_browser(monkeypatch):
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")


@pytest.mark.usefixtures("without_browser")
def test_without_a_browser_it_says_what_to_install(tmp_path):
    with pytest.raises(
        InputError, match=r"static: got no browser at /nowhere/chrome, expected a Chrome or Chromium.*apt-get install chromium"
    ):
        psr.report(comparison(), tmp_path / "r.html", static=tmp_path / "figures")
    assert not list(tmp_path.iterdir())


def test_a_browser_that_does_not_start_is_said_to_be(tmp_path, monkeypatch):
    errors = pytest.importorskip("choreographer.errors")

    def fail(*_: object, **__: object) -> None:
        raise errors.BrowserFailedError("closed at once")

    monkeypatch.setattr(images, "check_browser", lambda: None)
    monkeypatch.setattr(images.plotly.io, "write_images", fail)
    with pytest.raises(InputError, match=r"static: got a browser that does not start \(closed at once\)"):
        images.write_images({"a": comparison_figure()}, tmp_path / "figures")
    assert not list((tmp_path / "figures").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, "out"), "figures: got none, expected at least one"),
        (({"a/b": FIGURE}, "out"), "figures: got the name 'a/b', expected a file name without folder or extension"),
        (({"a": FIGURE}, "out", ["gif"]), "formats: got 'gif', expected a list of formats from png, svg"),
        (({"a": FIGURE}, "out", "png"), "formats: got 'png', expected a list"),
        (({"a": None}, "out"), r"figures\['a'\]: got None, expected a Figure"),
        (([None], "out"), "figures: got a list, expected a mapping of names to Figures"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_invalid_arguments_of_pictures(arguments, message):
    with pytest.raises(InputError, match=message):
        images.write_images(*arguments)
