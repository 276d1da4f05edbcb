"""The time that a chat template is told: the same when a command is repeated with its folder, and in all its processes."""

import json
import shutil

import pytest
import torch
import yaml
from helpers import random_replacement
from typer.testing import CliRunner

import psr_lens as psr
from psr_lens.apps import template_time
from psr_lens.apps.cli import app
from psr_lens.errors import ArtifactError
from psr_lens.prompts import chat_templates

LINE = {"question": "what is a bear ?", "instruction": "talk like a pirate ."}
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}{{ 'bear' if strftime_now('%Y') == '2020' else 'fox' }}"
)
FIRST = {"strftime_now": "2020-01-02T03:04:05"}


def call(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output


def in_year(monkeypatch, year):
    monkeypatch.setattr(chat_templates, "_BEGAN", f"{year}-01-02T03:04:05")


@pytest.fixture
def model(folders, tmp_path):
    """A folder of a model whose template asks for the time."""
    shutil.copytree(folders["llama"], tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "lines.jsonl").write_text(json.dumps(LINE))
    return tmp_path / "model"


def test_a_capture_that_is_resumed_keeps_its_first_time(model, tmp_path, monkeypatch):
    options = ["--pairs", tmp_path / "lines.jsonl", "--model", model, "--max-new-tokens", 3, "--out", tmp_path / "store"]
    for year in (2020, 2021):
        in_year(monkeypatch, year)
        call("capture", *options)
    (triplet,) = psr.Store.open(tmp_path / "store").triplets
    assert triplet.pair.chat.variables == FIRST


@pytest.mark.parametrize("dataset", ["pairs", "dataset"])
def test_an_evaluation_that_is_resumed_keeps_its_first_time_and_answers_nothing_again(
    model, tmp_path, monkeypatch, counted, dataset
):
    random_replacement(psr.load_model(model, verify=False)).save(tmp_path / "method")
    row = {"key": 1, "prompt": "what is a bear ? be brief .", "prompt_without_instruction": "what is a bear ?"}
    row |= {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    asked = {"pairs": str(tmp_path / "lines.jsonl"), "dataset": {"name": "ifeval", "path": str(tmp_path / "rows.jsonl")}}
    given = {"model": str(model), "verify": False, "methods": {"A": str(tmp_path / "method")}, "judge": "fraction:a"}
    given |= {"calibration": {"targets": [], "at_prompt": False}, "sampling": {"max_new_tokens": 3}, dataset: asked[dataset]}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(given))
    found = []
    for year, out in ((2020, "first"), (2021, "first"), (2021, "other")):
        in_year(monkeypatch, year)
        call("evaluate", "--config", tmp_path / "e.yaml", "--out", tmp_path / out)
        found.append(len(counted))
    assert found[1] == found[0] < found[2]
    assert not (tmp_path / "first" / "pareto.html").exists()  # the judge gives no coherence
    assert [json.loads((tmp_path / out / template_time.TIME_FILE).read_text()) for out in ("first", "other")] == [
        FIRST,
        {"strftime_now": "2021-01-02T03:04:05"},
    ]


def test_a_fit_that_is_resumed_keeps_its_first_time(model, tmp_path, monkeypatch):
    (tmp_path / "lines.jsonl").write_text(json.dumps(LINE | {"response": "arr , the bear ."}))
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump({"solver": "joint", "epochs": 1, "batch_size": 1}))
    options = ["--triplets", tmp_path / "lines.jsonl", "--model", model, "--config", tmp_path / "fit.yaml", "--no-verify"]
    for year in (2020, 2021):  # the second is refused if its prompts are other ones
        in_year(monkeypatch, year)
        call("fit", *options, "--out", tmp_path / str(year), "--checkpoint", tmp_path / "state")
    assert psr.Replacement.load(tmp_path / "2020").data == psr.Replacement.load(tmp_path / "2021").data
    call("fit", *options, "--out", tmp_path / "alone")
    assert psr.Replacement.load(tmp_path / "alone").data != psr.Replacement.load(tmp_path / "2021").data


def test_all_processes_are_told_the_time_of_the_first(model, monkeypatch):
    loaded = psr.load_model(model, verify=False)
    letters = torch.zeros(template_time._LONGEST, dtype=torch.long)
    letters[: len(FIRST["strftime_now"])] = torch.tensor([*FIRST["strftime_now"].encode()])
    monkeypatch.setattr(template_time, "same_as_first", lambda tensors: [each.copy_(letters) for each in tensors])
    in_year(monkeypatch, 2021)
    assert template_time.told_time(loaded) == FIRST


def test_no_time_is_kept_for_a_template_that_does_not_ask_and_a_damaged_one_is_refused(model, tiny_llama, tmp_path):
    assert template_time.kept_time(tiny_llama.model, tmp_path / "new") == {}
    assert not (tmp_path / "new").exists()
    for content in ("{", "{}", "[]", '{"strftime_now": "noon"}'):
        (tmp_path / template_time.TIME_FILE).write_text(content)
        with pytest.raises(ArtifactError, match=r"template_time\.json: is damaged .* Delete it"):
            template_time.kept_time(psr.load_model(model, verify=False), tmp_path)
