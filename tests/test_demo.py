import json

import pytest
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.cli import app

METHODS = {"none", "prompt", "S-Const DiM", "S-PSR", "A-PSR"}
TRAITS = ("pirate", "gloomy")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    arguments = ["demo", "--out", str(folder), *(part for trait in TRAITS for part in ("--trait", trait))]
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.output
    return folder, outcome.output


@pytest.fixture(scope="module")
def traits(demo):
    content = json.loads((demo[0] / "results.json").read_text())
    assert content["format"] == 1
    return content["traits"]


def test_results_hold_every_method_for_every_trait(traits):
    assert tuple(traits) == TRAITS
    for found in traits.values():
        assert set(found["methods"]) == METHODS
        assert set(found["relative_rmse"]) == {"A-PSR", "S-PSR", "S-Const DiM", "paraphrase"}
        assert {len(values) for values in found["relative_rmse"].values()} == {6}
        assert {key: len(values) for key, values in found["strength"].items()} == {"median": 6, "p99": 6, "rank1_share": 6}
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
        strength = found["strength"]
        assert strength["p99"][3] > 2 * strength["median"][3]
        assert max(strength["rank1_share"][1:]) > 0.5


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


def test_bad_input_is_one_line_and_exit_code_two(tmp_path):
    outcome = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "x"), "--trait", "piratey"])
    assert outcome.exit_code == 2
    assert "trait: got 'piratey', expected one of pirate, shout" in outcome.output
    assert "Traceback" not in outcome.output
    outcome = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "x"), "--questions", "3"])
    assert outcome.exit_code == 2
    assert "held_out_questions: got 3, expected 100 or more" in outcome.output
    outcome = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "x"), "--model", "gpt2"])
    assert outcome.exit_code == 2
    assert "model: got 'gpt2', expected one of organism, organism-gpt2" in outcome.output
    file = tmp_path / "file"
    file.write_text("kept")
    outcome = CliRunner().invoke(app, ["demo", "--out", str(file)])
    assert outcome.exit_code == 2
    assert file.read_text() == "kept"
