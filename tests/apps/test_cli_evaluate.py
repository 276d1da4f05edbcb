"""`psr-lens evaluate`: the same numbers as the library, on disk; what it goes on from, and what it refuses."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from helpers import random_replacement
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens import judges
from psr_lens.apps.cli import app
from psr_lens.errors import InputError
from psr_lens.evaluation import answer_cache as answers
from psr_lens.evaluation import config
from psr_lens.evaluation.config import EvaluationConfig, read_config
from psr_lens.evaluation.judge_settings import load_judge

CONFIG = {
    "model": "organism",
    "dataset": {"name": "organism", "trait": "sea", "count": 4, "kind": "procedure"},
    "judge": "organism:sea",
    "alphas": [0.5],
    "with_prompt": ["weak"],
    "calibration": {"targets": [80], "steps": 1, "maximum": 1},
    "sampling": {"max_new_tokens": 12, "seed": 2},  # no draw within 0.02 of the border between two tokens, so rounding decides none
    "block": "procedures",
}


def run(*arguments):
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def settings(organism, tmp_path):
    steering = random_replacement(organism.model, size=0.02)
    steering.save(tmp_path / "weak")
    (2.0 * steering).save(tmp_path / "plan")
    methods = {"weak": str(tmp_path / "weak"), "plan": str(tmp_path / "plan")}
    return CONFIG | {"methods": methods, "out": str(tmp_path / "out")}


def written(tmp_path, settings):
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return tmp_path / "eval.yaml"


def test_it_writes_what_the_library_finds_and_a_second_run_generates_nothing(organism, tmp_path, settings, monkeypatch):
    path = written(tmp_path, settings)
    code, output = run("--config", path)
    assert code == 0, output
    out = tmp_path / "out"
    assert sorted(each.name for each in out.iterdir()) == ["answers", "pareto.html", "results.json", "results.md"]
    asked = psr.organism.questions(4, split="held_out", kind="procedure")
    pairs = psr.prompt_pairs(organism.model, asked, psr.organism.instruction("sea"))
    wanted = psr.evaluate(
        organism.model,
        pairs,
        config.load_methods(settings["methods"]),
        psr.judges.organism("sea"),
        calibration=psr.Calibration(alphas=(0.5,), targets=(80,), steps=1, maximum=1, with_prompt=["weak"]),
        sampling=psr.SamplingConfig(max_new_tokens=12, seed=2),
    )
    assert {point.alpha for point in wanted.curves["plan"]} == {0.0, 0.5, 1.0}
    found = psr.ResultTable.from_json(out / "results.json")
    assert repr(found.rows) == repr(wanted.table(block="procedures").rows)
    text = (out / "results.md").read_text()
    assert "| weak + prompt | " in text
    assert "4 questions" in text
    assert "TA@C80" in output
    before = {name: (out / name).read_bytes() for name in ("results.json", "results.md")}

    def refuse(*args, **kwargs):
        raise AssertionError("generated again")

    monkeypatch.setattr(answers, "generate", refuse)
    assert run("--config", path)[0] == 0
    assert {name: (out / name).read_bytes() for name in before} == before


def test_pairs_may_come_from_a_file_and_only_those_of_a_group(tmp_path, settings):
    lines = [
        {"question": "what is a bear ?", "instruction": "talk like a pirate .", "group": "pirate"},
        {"question": "what is a fox ?", "instruction": "talk like a pirate .", "group": "pirate"},
        {"question": "what is a fox ?", "instruction": "be gloomy .", "group": "gloomy"},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    changes = {
        "pairs": str(tmp_path / "pairs.jsonl"),
        "group": "pirate",
        "judge": "organism:pirate",
        "calibration": {"targets": []},
    }
    del settings["dataset"]
    code, output = run("--config", written(tmp_path, settings | changes), "--out", tmp_path / "elsewhere")
    assert code == 0, output
    table = psr.ResultTable.from_json(tmp_path / "elsewhere" / "results.json")
    assert {row.n + row.missing for row in table} == {2}
    assert {row.trait for row in table} == {"pirate"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": None, "metods": {}}, "config: unknown setting 'metods'. Did you mean 'methods'?"),
        ({"methods": None}, "without 'methods'"),
        ({"methods": {"a": "nowhere"}}, "nowhere/replacement.json: no such file"),
        ({"methods": {"a": 3}}, "methods.a: got 3, expected the folder"),
        ({"methods": ["a"]}, "methods: got ['a'], expected a mapping"),
        ({"dataset": None}, "pairs: got neither of pairs and dataset"),
        ({"pairs": "x.jsonl"}, "pairs: got both of pairs and dataset"),
        ({"dataset": {"name": "organsm"}}, "dataset: got"),
        ({"dataset": {"name": "organism", "trait": "sea", "cont": 3}}, "dataset: unknown setting 'cont'"),
        ({"dataset": {"name": "organism", "trait": "see"}}, "trait: got 'see'"),
        ({"judge": "organizm:sea"}, "judge: got 'organizm', expected one of"),
        ({"judge": "organism:see"}, "trait: got 'see'"),
        ({"judge": {"name": "organism", "trat": "sea"}}, "judge: got"),
        ({"judge": 3}, "judge: got 3"),
        ({"alphas": 1.0}, "alphas: got 1.0, expected a list of numbers."),
        ({"alphas": [-1]}, "alphas: got -1"),
        ({"calibration": {"step": 1}}, "calibration: unknown setting 'step'. Did you mean 'steps'?"),
        ({"calibration": {"targets": 80}}, "targets: got 80, expected a list of numbers."),
        ({"calibration": {"targets": ["80"]}}, "targets[0]: got '80'"),
        ({"sampling": {"seeds": 1}}, "sampling: unknown setting 'seeds'"),
        ({"sampling": {"seed": -1}}, "seed: got -1"),
        ({"with_prompt": ["nobody"]}, "with_prompt: got ['nobody']"),
        ({"with_prompt": "weak"}, "with_prompt: got 'weak', expected a list of texts or True or False. Put it in brackets."),
        ({"block": 3}, "block: got 3, expected a text"),
        ({"model": "no-such-model"}, "no-such-model"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_meant_is_one_line_that_names_the_key_and_exit_code_2(tmp_path, settings, changes, message):
    given = {key: value for key, value in (settings | changes).items() if value is not None}
    code, output = run("--config", written(tmp_path, given))
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"alphas": 1.0}, "alphas: got 1.0, expected a list of numbers"),
        ({"with_prompt": "A"}, "with_prompt: got 'A', expected a list of texts"),
        ({"calibration": {"steps": -1}}, "steps: got -1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_of_the_calibration_are_refused_when_they_are_given_in_python_too(setting, message):
    with pytest.raises(InputError, match=message):
        EvaluationConfig(judge="organism:pirate", methods={}, pairs="lines.jsonl", **setting)


@pytest.mark.parametrize("content", ["judge: [", "- a", None])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "eval.yaml").write_text(content)
    code, output = run("--config", tmp_path / "eval.yaml")
    assert code == 2
    assert "config: got" in output


@pytest.mark.usefixtures("unchecked")
def test_a_judge_gets_what_the_file_cannot_say_and_may_be_put_together_of_two(organism, monkeypatch, tmp_path):
    calls = {}

    def judge(name):
        def make(*args, **kwargs):
            calls[name] = (args, kwargs)
            return lambda texts, questions: None

        return make

    def perplexity(model, pairs, references=None, *, seed=0):
        return judge("perplexity")(model, pairs, seed=seed)

    def ifeval(instructions, *, accuracy="strict"):
        return judge("ifeval")(instructions, accuracy=accuracy)

    def llm(trait_prompt, coherence_prompt="c", *, model="gpt"):
        return judge("llm")(trait_prompt, model=model)

    def classifier(name_or_path, label, side="trait"):
        return judge("classifier")(name_or_path, label, side)

    def combine(trait, coherence):
        calls["combine"] = ((), {"trait": trait, "coherence": coherence})
        return trait

    made = {"perplexity": perplexity, "ifeval": ifeval, "llm": llm, "classifier": classifier, "combine": combine}
    for name, function in made.items():
        monkeypatch.setattr(judges, name, function, raising=False)
    monkeypatch.setattr(judges, "__all__", [*made])
    model, pairs, rows = organism.model, ["pairs"], ["rows"]
    (tmp_path / "trait.txt").write_text("How {answer}?")
    load_judge({"trait": "ifeval", "coherence": {"name": "perplexity", "seed": 3}}, model, pairs, rows)
    load_judge(f"llm:{tmp_path / 'trait.txt'}", model, pairs, rows)
    load_judge("classifier:some/folder:POSITIVE", model, pairs, rows)
    assert calls["ifeval"] == ((rows,), {"accuracy": "strict"})
    assert calls["perplexity"] == ((model, pairs), {"seed": 3})
    assert set(calls["combine"][1]) == {"trait", "coherence"}
    assert calls["llm"] == (("How {answer}?",), {"model": "gpt"})
    assert calls["classifier"] == (("some/folder", "POSITIVE", "trait"), {})
    with pytest.raises(InputError, match=r"judge\.coherence: got 'nobody'"):
        load_judge({"trait": "ifeval", "coherence": "nobody"}, model, pairs, rows)


def test_defaults_are_those_of_the_library(tmp_path, settings):
    few = {key: settings[key] for key in ("methods", "dataset", "judge")}
    found = read_config(written(tmp_path, few))
    assert found.calibrated_by() == psr.Calibration()
    assert found.sampled_by() == psr.SamplingConfig()
    assert np.array_equal(found.alphas, [1.0])
    assert replace(found.calibrated_by(), targets=()) != psr.Calibration()
