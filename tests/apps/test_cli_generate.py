"""`psr-lens generate`, and what all commands say of themselves."""

import re
import sys
from types import SimpleNamespace

import pytest
from helpers import random_replacement
from rich.console import Console
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.apps.cli import app
from psr_lens.apps.cli.common import say
from psr_lens.apps.cli.generate import settled
from psr_lens.apps.cli.run import _first_answers
from psr_lens.apps.pipeline.run_folder import ANSWERS_FILE, write_answers
from psr_lens.apps.playground import artifacts

QUESTION = "what is a bear ?"


def call(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, result.output


@pytest.fixture
def saved(organism, tmp_path, monkeypatch):
    """A replacement for `organism`, which is loaded already."""
    monkeypatch.setattr(psr, "load_model", lambda name, **_: {"organism": organism.model}[name])
    method = random_replacement(organism.model, size=0.05)
    return method, method.save(tmp_path / "method")


def test_it_prints_what_generate_writes(organism, saved):
    method, folder = saved
    pairs = psr.prompt_pairs(organism.model, [QUESTION], "be brief .")
    sampling = psr.SamplingConfig(temperature=0.9, seed=4, max_new_tokens=12)
    options = ("--temperature", 0.9, "--seed", 4, "--max-new-tokens", 12, "--instruction", "be brief .", "--alpha", 0.5)
    wanted = psr.generate(organism.model, pairs, method, alpha=0.5, sampling=sampling)[0].text
    assert call("generate", folder, QUESTION, *options) == (0, f"{wanted}\n")
    none, prompt = (psr.generate(organism.model, pairs, context=each, sampling=sampling)[0].text for each in ("base", "prompted"))
    code, output = call("generate", folder, QUESTION, *options, "--beside")
    assert (code, output.splitlines()) == (0, [f"none: {none}", f"prompt: {prompt}", f"method: {wanted}"])


def test_without_an_instruction_it_takes_the_one_that_was_learned(organism, saved, tmp_path):
    method, folder = saved
    code, output = call("generate", folder, QUESTION, "--beside")
    assert code == 2
    assert "Pass `--instruction`" in output
    pairs = psr.prompt_pairs(organism.model, [QUESTION], "talk like a pirate .")
    sampling = psr.SamplingConfig(temperature=0, max_new_tokens=4)
    wanted = psr.generate(organism.model, pairs, method, sampling=sampling)[0].text  # the instruction is in no prompt that is read
    assert call("generate", folder, QUESTION, "--temperature", 0, "--max-new-tokens", 4) == (0, f"{wanted}\n")
    learned = type(method)(**{**vars(method), "settings": {"instructions": ["be brief ."]}})
    assert artifacts.instruction_of({"A": learned}) == "be brief ."
    assert artifacts.instruction_of({"A": method, "B": learned + learned}) == "be brief ."
    assert artifacts.model_of({"A": learned * 2}) == "organism"


@pytest.mark.parametrize(
    ("answers", "pieces"),
    [
        (["do", "do n", "don't", "don't x"], ["", "do", "", "n't x"]),
        (["a", "a b", "a b c"], ["", "a", " b c"]),
        (["a :bear:\t", "a :bear:\t", "a :bear:\t"], ["", "a :bear:\t", ""]),
        (["a b", "a b c", "x"], ["", "a b", "\nx"]),  # what is printed cannot be taken back
        (["a"], ["a"]),
    ],
)
def test_an_answer_is_printed_as_far_as_it_is_settled(answers, pieces):
    tokens = [SimpleNamespace(answer=each, is_last=index == len(answers) - 1) for index, each in enumerate(answers)]
    assert list(settled(tokens)) == pieces


def test_a_text_is_said_as_it_is(capsys):
    say("[b]:bear:[/b]\tx" + "y" * 300)
    assert capsys.readouterr().out == "[b]:bear:[/b]\tx" + "y" * 300 + "\n"


def test_play_puts_prompts_together_as_the_artifact_was_fitted(organism, saved, monkeypatch):
    for name in ("starlette", "uvicorn"):
        pytest.importorskip(name, reason="needs the extra `play`")
    sessions = []
    monkeypatch.setattr("psr_lens.apps.playground.server.Server.__init__", lambda self, session: sessions.append(session))
    monkeypatch.setattr("psr_lens.apps.playground.server.Server.address", "http://nowhere", raising=False)
    monkeypatch.setattr("psr_lens.apps.playground.server.Server.run", lambda self: None)
    options = ("--instruction", "be brief .", "--place", "after", "--prefix", "the", "--no-open")
    code, output = call("play", "organism", saved[1], *options)
    assert (code, output.splitlines()[0]) == (0, "http://nowhere")
    pair = psr.prompt_pairs(organism.model, [QUESTION], "be brief .", place="after", prefix="the")[0]
    assert sessions[0]._pairs[0] == pair
    assert all(word in organism.model.tokenizer.get_vocab() for word in sessions[0].hello["question"].split())
    start = sessions[0]._python(SimpleNamespace(pair=pair, request=SimpleNamespace(sampling=psr.SamplingConfig())))
    assert "model = psr.load_model('organism')\n" in start
    assert "place='after', prefix='the')" in start


def test_what_is_missing_is_said_before_a_model_is_loaded(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(psr, "load_model", None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "lines.jsonl").write_text('{"question": "a", "instruction": "b"}\n')
    for command in (
        ["generate", tmp_path / "nowhere", QUESTION, "--instruction", "x"],
        ["fit", "--triplets", tmp_path / "nowhere", "--out", tmp_path / "o"],
        ["fit", "--triplets", tmp_path / "empty", "--out", tmp_path / "o"],
        ["capture", "--pairs", tmp_path / "nowhere", "--out", tmp_path / "o"],
        ["evaluate", "--config", tmp_path / "nowhere"],
        ["run", "--model", "organism", "--instruction", "x", "--questions", tmp_path / "nowhere", "--out", tmp_path / "o"],
    ):
        code, output = call(*command)
        assert code in (1, 2), command
        assert "nowhere" in output or "empty" in output, (command, output)


def test_play_names_its_extra_before_anything_is_loaded(saved, monkeypatch):
    monkeypatch.setattr(psr, "load_model", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setitem(sys.modules, "starlette", None)
    code, output = call("play", "organism", saved[1])
    assert code == 2
    assert "psr-lens[play]" in output  # and not eaten as markup


def test_folders_of_one_name_are_told_apart(tmp_path):
    for name in ("a/x", "b/x", "none"):
        (tmp_path / name).mkdir(parents=True)
    found = artifacts.named_folders([tmp_path / "a/x", tmp_path / "b/x", tmp_path / "none"])
    assert list(found) == ["x", "x 2", "none 2"]


def test_the_version_is_said():
    assert call("--version") == (0, f"psr-lens {psr.__version__}\n")


def test_help_keeps_its_brackets():
    code, output = call("demo", "--help")
    assert code == 0
    assert "psr-lens[static]" in re.sub(r"[\s│]+", "", output)


@pytest.mark.usefixtures("unchecked")
def test_a_run_ends_with_an_answer_of_the_prompt_beside_one_of_its_first_method(tmp_path, capsys):
    row = {"question": "[b]who ?[/b]", "instruction": "x", "none": "nobody", "prompt": "arr [i]", "A": "arr, me", "B": "hm"}
    write_answers(tmp_path / ANSWERS_FILE, {name: [text, "no"] for name, text in row.items()})
    Console(width=60).print(_first_answers(SimpleNamespace(out=tmp_path, methods={"A": None, "B": None})))
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[b]who ?[/b]", "prompt", "arr [i]", "A", "arr, me"))
    assert not any(text in shown for text in ("nobody", "hm", "no "))
