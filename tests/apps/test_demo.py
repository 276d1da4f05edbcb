"""`psr-lens demo`: what it writes, that its numbers are those of the method, and what it refuses."""

import json
from functools import partial

import browser
import pytest
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.apps import demo as demo_module
from psr_lens.apps.cli import app

pytestmark = pytest.mark.slow

METHODS = {"none", "prompt", "S-Const DiM", "S-PSR", "A-PSR"}
TRAITS = ("pirate",)
SMALL = {"fit_questions": 40, "validation_questions": 12, "looked_into": 4}
"""A sixth of the demo's questions to fit on; enough for the same conclusions."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    arguments = ["demo", "--out", str(folder), "--questions", "100", *(part for trait in TRAITS for part in ("--trait", trait))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "DemoConfig", partial(demo_module.DemoConfig, **SMALL))
        outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    return folder, outcome.output


@pytest.fixture(scope="module")
def traits(demo):
    content = json.loads((demo[0] / "results.json").read_text())
    assert content["format"] == 2
    return content["traits"]


def test_results_hold_every_method_for_every_trait(traits):
    assert tuple(traits) == TRAITS
    for found in traits.values():
        assert set(found["methods"]) == METHODS
        assert set(found["relative_rmse"]) == {"A-PSR", "S-PSR", "S-Const DiM", "paraphrase"}
        assert {len(values) for values in found["relative_rmse"].values()} == {6}
        assert {key: len(values) for key, values in found["magnitude"].items()} == dict.fromkeys(
            ["median", "p99", "rank1_share", "rank1_share_without_massive"], 6
        )
        for scores in found["methods"].values():
            assert scores["n"] >= 100
            assert 0 <= scores["trait"] <= 100
            assert 0 <= scores["coherence"] <= 100


@pytest.mark.parametrize("trait", TRAITS)
def test_replacements_do_what_the_prompt_did_and_the_constant_does_not(traits, trait):
    methods = traits[trait]["methods"]
    for name in ("A-PSR", "S-PSR"):
        assert methods[name]["alpha"] == 1.0
        assert methods[name]["trait"] >= methods["prompt"]["trait"] - 5
        assert methods[name]["coherence"] >= methods["prompt"]["coherence"] - 5
    assert methods["none"]["trait"] <= 5
    assert methods["S-Const DiM"]["trait"] < methods["prompt"]["trait"] - 40
    assert methods["S-Const DiM"]["coherence"] >= 95


@pytest.mark.parametrize("trait", TRAITS)
def test_faithfulness_at_the_last_layer(traits, trait):
    rmse = {name: values[-1] for name, values in traits[trait]["relative_rmse"].items()}
    assert rmse["A-PSR"] <= 0.30
    assert rmse["A-PSR"] < rmse["S-PSR"] < rmse["S-Const DiM"]


def test_the_instruction_pushes_a_few_tokens_hard(traits):
    for found in traits.values():
        magnitude = found["magnitude"]
        assert magnitude["p99"][3] > 2 * magnitude["median"][3]
        assert max(magnitude["rank1_share"][1:]) > 0.5


def test_the_report_and_the_artifacts_are_there(demo):
    folder, output = demo
    page = (folder / "report.html").read_text()
    assert len(page) < 8e6
    for trait in TRAITS:
        assert trait in page
        loaded = psr.Replacement.load(folder / "artifacts" / trait / "A-PSR")
        assert loaded.method == "A-PSR"
        assert len(loaded.sites) == 6
    assert "report.html" in output


def test_the_report_says_on_which_questions_the_constants_strength_was_chosen(demo, traits):
    page = (demo[0] / "report.html").read_text()
    for found in traits.values():
        alpha = found["methods"]["S-Const DiM"]["alpha"]
        assert f"{alpha:g}, the one of 0.5, 1, 1.5, 2, 3, 4 with the highest trait" in page
        assert "on 12 validation questions, none of which is scored" in page
        figures = "1" if alpha == 1 else f"1 (A-PSR), 1 (S-PSR), {alpha:g} (S-Const DiM)"
        assert f"<td>{figures}</td>" in page or figures in page


def test_the_report_holds_what_was_looked_into(demo):
    page = (demo[0] / "report.html").read_text()
    for title in (
        "Trait against coherence",
        "Faithfulness: next tokens and sites",
        "Where in a block the prompt acts",
        "Which heads read the instruction",
        "Patching: which cells carry the effect",
        "What the directions mean",
        "Learning curves",
    ):
        assert page.count(f">{title}</h3>") == len(TRAITS)


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "a browser is there")
def test_the_report_opens_in_a_phones_browser(demo):
    width = min(browser.WIDTHS)
    with browser.browser() as tab:
        tab.open(demo[0] / "report.html", width)
        tab.js("document.getElementById('unfold').click()")
        tab.wait_for("document.documentElement.dataset.figures === 'drawn'")
        figures = [each for each in tab.figures() if each["visible"]]
        assert len(figures) == 22 * len(TRAITS)
        assert all(each["marks"] and not each["overflow"] for each in figures), figures
        assert tab.js("document.documentElement.scrollWidth") <= width
        assert tab.errors == []


def test_pictures_are_refused_before_anything_is_run(tmp_path, monkeypatch):
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")
    outcome = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "x"), "--static"])
    assert outcome.exit_code == 2
    assert "static: got no browser at /nowhere/chrome, expected a Chrome or Chromium" in outcome.output
    assert "Traceback" not in outcome.output
    assert not (tmp_path / "x").exists()


def test_bad_input_is_one_line_and_exit_code_two(tmp_path):
    outcome = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "x"), "--trait", "piratey"])
    assert outcome.exit_code == 2
    assert "trait: got 'piratey', expected one of pirate, shout" in outcome.output
    assert "Traceback" not in outcome.output
    outcome = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "x"), "--questions", "3"])
    assert outcome.exit_code == 2
    assert "held_out_questions: got 3, expected 100 or more" in outcome.output
    outcome = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "x"), "--model", "a/folder", "--trait", "shout"])
    assert outcome.exit_code == 2
    assert "trait: got 'shout', expected one of french, spanish, pirate" in outcome.output
    file = tmp_path / "file"
    file.write_text("kept")
    outcome = CliRunner().invoke(app, ["demo", "--out", str(file)])
    assert outcome.exit_code == 2
    assert file.read_text() == "kept"
