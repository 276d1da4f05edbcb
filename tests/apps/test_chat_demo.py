"""`psr-lens demo --model FOLDER`: the demo on a chat model, here the organism's folder with an instruction that it knows."""

import json
from dataclasses import replace

import made_up_results
import pytest
import torch
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens import organism
from psr_lens.activations.massive_activations import MassiveActivations
from psr_lens.apps.cli import app
from psr_lens.apps.cli import demo as demo_command
from psr_lens.apps.demo import INSTRUCTIONS, ChatDemoConfig, DemoResult, chat_demo, run_demo
from psr_lens.apps.demo.chat_demo import ChatInstruction
from psr_lens.errors import InputError, ModelError

pytestmark = pytest.mark.slow

SMALL = {"fit_questions": 16, "validation_questions": 2, "held_out_questions": 8, "rank": 4, "looked_into": 2}


def questions(count=None, *, seed=0):
    return organism.questions(count or 120, seed=seed)


@pytest.fixture(scope="module")
def folder():
    return str(organism.__path__[0] + "/weights/llama")


@pytest.fixture
def in_its_language(monkeypatch):
    known = ChatInstruction(
        organism.instruction("pirate"), organism.instruction("pirate", 1), lambda: psr.judges.organism("pirate")
    )
    monkeypatch.setattr(chat_demo, "INSTRUCTIONS", {"pirate": known})
    monkeypatch.setattr(chat_demo, "everyday_questions", questions)


def test_it_fits_scores_and_shows_answers_side_by_side(folder, in_its_language, tmp_path):
    said = []
    found = run_demo(tmp_path / "out", ["pirate"], ChatDemoConfig(folder, verify=False, **SMALL), said.append)["pirate"]
    scores = {each.method: each for each in found.comparison.scores}
    assert list(scores) == ["none", "prompt", "A-PSR", "S-Const DiM"]
    assert {each.n for each in scores.values()} == {8}
    assert scores["none"].trait < 20
    assert scores["A-PSR"].trait > 80
    assert scores["A-PSR"].alpha in chat_demo.ALPHAS
    side_by_side = found.further[0]
    held_out = questions(26)[18:]
    assert side_by_side.questions == tuple(held_out)
    assert sum(side_by_side.trait["A-PSR"]) / 8 == pytest.approx(scores["A-PSR"].trait)
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(content["traits"]["pirate"]["methods"]) == set(scores)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Answers side by side" in page
    assert "on 2 validation questions, none of which is scored" in page
    assert len(psr.Replacement.load(tmp_path / "out" / "artifacts" / "pirate" / "A-PSR").sites) == 6
    assert said[:2] == [f"loading {folder}", "answering without an instruction"]


def test_an_instruction_that_the_model_does_not_follow_is_said_before_anything_is_fitted(folder, tmp_path):
    small = ChatDemoConfig(folder, verify=False, fit_questions=8, validation_questions=1, held_out_questions=2, max_new_tokens=8)
    with pytest.raises(ModelError, match=r"follows 'Talk like a pirate\.' in \d of 8 responses .* Try another instruction"):
        run_demo(tmp_path / "out", ["pirate"], small)


def test_settings_are_checked():
    with pytest.raises(InputError, match="held_out_questions: got 60, expected at most 52, since there are 120 questions"):
        ChatDemoConfig("folder", held_out_questions=60)
    with pytest.raises(InputError, match="held_out_questions: got 0, expected 1 or more"):
        ChatDemoConfig("folder", held_out_questions=0)


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_the_instructions_judges_know_their_trait(name):
    texts = {
        "french": "Le chat dort sur la chaise rouge.",
        "spanish": "El gato duerme en la silla roja.",
        "pirate": "Arr, the cat be asleep, matey!",
    }
    judge = INSTRUCTIONS[name].make_judge()
    assert judge([texts[name], "The cat sleeps on the red chair."], ["q", "q"]).trait.round().tolist() == [100.0, 0.0]


def test_the_command_line_hands_on_what_was_given(monkeypatch, tmp_path):
    given = []
    monkeypatch.setattr(
        "psr_lens.apps.demo.run_demo", lambda out, traits, config, say, **others: given.append((traits, config, others)) or {}
    )
    arguments = ["demo", "--out", str(tmp_path), "--model", "a/folder", "--questions", "30", "--trait", "french", "--no-verify"]
    arguments += ["--device", "cuda:1"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    config = ChatDemoConfig("a/folder", held_out_questions=30, verify=False)
    assert given == [(["french"], config, {"static": False, "device": "cuda:1"})]


def test_the_table_of_the_command_has_the_distance_with_and_without_massive_tokens():
    result = made_up_results.comparison()
    nothing = MassiveActivations((), result.layers, {"base": torch.ones(4)}, len(result.tokens), 3, "R", 3.0)
    traces = {name: replace(trace, error=0.25 * result.magnitude) for name, trace in result.methods.items()}
    shown = demo_command._table({"pirate": DemoResult(replace(result, methods=traces, massive=nothing), {}, (), 1.0)})
    cells = {str(column.header): list(column.cells) for column in shown.columns}
    at = cells["method"].index("A-PSR")
    assert [cells[name][at] for name in ("relative RMSE, last layer", "without massive tokens", "median token")] == [
        "0.10",  # as made up; the others from the errors
        "0.25",
        "0.25",
    ]
    at = cells["method"].index("paraphrase")
    assert [cells[name][at] for name in ("relative RMSE, last layer", "without massive tokens", "median token")] == ["0.20", "", ""]
