"""Options of the commands reach the settings, and only those: sampling, prompts, and how a model is loaded."""

import json
from dataclasses import asdict
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import typer
import yaml
from helpers import random_replacement
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.apps import benchmark, demo, pipeline
from psr_lens.apps.cli import app
from psr_lens.apps.pipeline import RunConfig
from psr_lens.errors import InputError, ModelError
from psr_lens.models import loading

GIVEN = {"model": "organism", "questions": "q.txt", "out": "out"}
LINE = {"question": "what is a bear ?", "instruction": "talk like a pirate .", "response": "arr , the bear is a strong animal ."}


def call(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def settings(monkeypatch):
    """`settings(arguments)`: the settings with which `psr-lens run` would begin."""
    found = []

    def keep(config, **_):
        found.append(config)
        raise InputError("run", "enough", "no more")

    monkeypatch.setattr(pipeline, "run", keep)

    def of(*arguments):
        code, output = call("run", *arguments)
        assert (code, "run: got enough" in output) == (2, True), output
        return asdict(found.pop())

    return of


OPTIONS = [
    (["--temperature", "0.5"], "sampling", {"temperature": 0.5}),
    (["--temperature", "0"], "sampling", {"temperature": 0.0}),
    (["--top-p", "0.9", "--max-new-tokens", "7"], "sampling", {"top_p": 0.9, "max_new_tokens": 7}),
    (["--place", "after"], "chat", {"place": "after"}),
    (["--place", "default_system", "--prefix", "arr"], "chat", {"place": "default_system", "prefix": "arr"}),
    (["--system", "be kind ."], "chat", {"system": "be kind ."}),
    (["--no-verify"], "verify", False),
    (["--verify"], "verify", True),
    (["--dtype", "bfloat16"], "dtype", "bfloat16"),
    (["--backend", "bridge"], "backend", "bridge"),
    (["--layers", "0,2"], "layers", [0, 2]),
    (["--layers", "3"], "layers", 3),
    (["--held-out", "0.5"], "held_out", 0.5),
    (["--held-out", "5"], "held_out", 5),
    (["--limit", "9"], "limit", 9),
    (["--seed", "4"], "seed", 4),
    (["--paraphrase", "speak so ."], "paraphrase", "speak so ."),
    (["--judge", "organism:pirate"], "judge", "organism:pirate"),
]


@pytest.mark.parametrize(("arguments", "name", "value"), OPTIONS)
def test_an_option_of_run_reaches_its_setting_and_no_other(settings, arguments, name, value):
    plain = [part for key, each in GIVEN.items() for part in (f"--{key}", each)]
    assert settings(*plain, *arguments) == asdict(RunConfig(**GIVEN)) | {name: value}


def test_options_go_before_the_file_and_leave_the_rest_of_its_mappings(settings, tmp_path):
    file = {**GIVEN, "sampling": {"top_k": 5, "temperature": 2.0, "stop": ["arr"]}, "chat": {"prefix": "well"}, "verify": False}
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(file))
    with_file = ["--config", tmp_path / "given.yaml"]
    assert settings(*with_file) == asdict(RunConfig(**file))
    sampling, chat = {**file["sampling"], "temperature": 0.5}, {"prefix": "well", "place": "after"}
    wanted = RunConfig(**{**file, "sampling": sampling, "chat": chat, "verify": True})
    assert settings(*with_file, "--temperature", "0.5", "--place", "after", "--verify") == asdict(wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature", "-1"], "temperature: got -1.0, expected a finite number"),
        (["--temperature", "nan"], "temperature: got nan, expected a finite number"),
        (["--top-p", "0"], "top_p: got 0.0, expected a number above 0"),
        (["--top-p", "1.5"], "top_p: got 1.5, expected a number above 0"),
        (["--place", "behind"], "place: got 'behind', expected 'before' or 'after'"),
        (["--place", "default_system", "--system", "be kind ."], "system: got 'be kind .', expected None with place="),
        (["--max-new-tokens", "0"], "max_new_tokens: got 0, expected a whole number"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_value_that_a_setting_cannot_have_is_refused_before_anything_is_loaded(arguments, message, monkeypatch):
    monkeypatch.setattr(pipeline, "run", None)
    code, output = call("run", *(part for key, each in GIVEN.items() for part in (f"--{key}", each)), *arguments)
    assert code == 2, output
    assert message in output


LOAD_NO_MODEL = {"store info", "serve", "lm-eval"}
"""Commands that have no model to check: vLLM and lm_eval load their own."""


@pytest.fixture
def commands(organism, tmp_path):
    """Every command that loads a model, with the arguments that it needs."""
    (tmp_path / "lines.jsonl").write_text(
        "\n".join(json.dumps({**LINE, "question": f"what is a {each} ?"}) for each in ("bear", "fox"))
    )
    random_replacement(organism.model).save(tmp_path / "method")
    lines, methods = str(tmp_path / "lines.jsonl"), {"A": str(tmp_path / "method")}
    evaluation = {"judge": "organism:pirate", "methods": methods, "pairs": lines, "out": str(tmp_path / "e")}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(evaluation))
    return {
        "fit": ["--triplets", lines, "--out", tmp_path / "f"],
        "generate": [tmp_path / "method", "what is a fox ?", "--instruction", "be brief ."],
        "play": ["organism", tmp_path / "method", "--instruction", "be brief .", "--no-open"],
        "transfer": [
            *("--from", tmp_path / "method", "--texts", lines, "--out", tmp_path / "t"),
            *("--source-model", "organism", "--target-model", "organism-gpt2"),
        ],
        "capture": ["--pairs", lines, "--out", tmp_path / "c"],
        "evaluate": ["--config", tmp_path / "e.yaml"],
        "run": ["--model", "organism", "--questions", lines, "--out", tmp_path / "r"],
        "demo": ["--out", tmp_path / "d"],
        "benchmark organism": ["--quick", "--out", tmp_path / "b"],
    }


@pytest.fixture
def asked(monkeypatch):
    """How models are asked for; none is loaded."""
    found = []

    def refuse(name, **options):
        found.append((name, options["verify"], str(options.get("device"))))
        raise ModelError("model: enough. No more.")

    for owner in (psr, demo.run, benchmark, pipeline.steps):
        monkeypatch.setattr(owner, "load_model", refuse)
    return found


def leaves(command, path=()):
    """All commands by their names on the command line."""
    if not hasattr(command, "commands"):
        return {" ".join(path): command}
    return {name: leaf for key, each in command.commands.items() for name, leaf in leaves(each, (*path, key)).items()}


def test_every_command_that_loads_a_model_can_leave_the_check_out(commands, asked):
    every = leaves(typer.main.get_command(app))
    assert commands.keys() == every.keys() - LOAD_NO_MODEL
    if not all(map(find_spec, ("starlette", "uvicorn"))):
        del commands["play"]  # needs its extra
    for command, given in commands.items():
        has_device = any("--device" in option.opts for option in every[command].params)
        for flags in ([], ["--no-verify"], ["--verify", *(["--device", "cpu"] if has_device else [])]):
            code, output = call(*command.split(), *given, *flags)
            assert (code, "model: enough" in output) == (2, True), (command, flags, output)
        assert [each[:2] for each in asked] == [("organism", True), ("organism", False), ("organism", True)], command
        assert asked[2][2] == ("cpu" if has_device else "None")
        asked.clear()


@pytest.mark.usefixtures("unchecked")
def test_the_file_of_an_evaluation_can_leave_it_out_and_an_option_put_it_back(commands, tmp_path, asked):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"verify": False}))
    for flags in ([], ["--verify"]):
        call("evaluate", *commands["evaluate"], *flags)
    assert [verify for _, verify, _ in asked] == [False, True]
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"verify": 3}))
    assert "verify: got 3, expected true or false" in call("evaluate", "--config", path)[1]


def test_results_of_a_benchmark_are_read_whether_or_not_the_model_was_checked(tmp_path, monkeypatch):
    made = []
    table = psr.ResultTable((), {})
    measuring = SimpleNamespace(measure=lambda say: made.append("measured") or table)
    monkeypatch.setattr(benchmark._Trait, "of", lambda *_: measuring)
    for verify in (True, False):
        config = benchmark.BenchmarkConfig.quick(verify=verify)
        found = benchmark.run_benchmark(tmp_path / "b", config, say=lambda text: None)["llama"]
        assert found.settings["verify"] is True  # how the model was loaded with which they were made
    assert made == ["measured"]


def test_an_unchecked_run_is_not_checked_and_says_so_in_its_file(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "probe_of", None)
    (tmp_path / "q.txt").write_text("\n".join(psr.organism.questions(4)))
    given = {"model": folders["llama"], "questions": tmp_path / "q.txt", "out": tmp_path / "out", "instruction": "be brief ."}
    stop = ModelError("model: enough. No more.")
    monkeypatch.setattr("psr_lens.apps.pipeline.steps._Run.finish", lambda self: (_ for _ in ()).throw(stop))
    code, output = call("run", *(part for key, each in given.items() for part in (f"--{key}", each)), "--no-verify")
    assert (code, "model: enough" in output) == (2, True), output
    assert yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())["verify"] is False


def test_prompts_are_put_together_as_the_options_or_the_file_say_in_every_command(organism, commands, tmp_path, monkeypatch):
    """A method is measured on the prompts that it was fitted on only if both commands can be told how they are put together."""
    chat = {"place": "after", "system": "be kind .", "prefix": "well"}
    wanted = psr.prompt_pairs(organism.model, ["what is a bear ?", "what is a fox ?"], LINE["instruction"], **chat)
    seen = []

    def enough(model, given, *_, **__):
        seen.append(tuple(getattr(each, "pair", each) for each in given))
        raise ModelError("model: enough. No more.")

    monkeypatch.setattr(psr, "load_model", lambda *_, **__: organism.model)
    for name in ("fit", "capture", "evaluate"):
        monkeypatch.setattr(psr, name, enough)
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"chat": chat}))
    options = [part for key, value in chat.items() for part in (f"--{key}", value)]
    for command in ("fit", "capture"):
        assert "model: enough" in call(command, *commands[command], *options)[1]
    assert "model: enough" in call("evaluate", *commands["evaluate"])[1]
    assert seen == [tuple(wanted)] * 3


def test_prompts_that_come_with_their_instructions_are_told_variables_alone(tmp_path):
    config = {"judge": "ifeval", "methods": {}, "dataset": {"name": "ifeval", "path": "x.jsonl"}, "chat": {"place": "after"}}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(config))
    message = "chat: got 'place', expected `template_kwargs` alone with IFEval"
    assert message in call("evaluate", "--config", tmp_path / "e.yaml", "--out", tmp_path / "out")[1]


def test_options_of_prompts_beside_a_store_are_refused(tmp_path):
    (tmp_path / "store").mkdir()
    code, output = call("fit", "--triplets", tmp_path / "store", "--out", tmp_path / "f", "--place", "after")
    assert (code, "place: got after, expected None with a store" in output) == (2, True), output
