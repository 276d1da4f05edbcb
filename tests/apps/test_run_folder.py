"""The folder of a run: a name for each method that no other has, a run that only its own folder resumes, older ones, and their time."""

import copy
import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import psr_lens as psr
from psr_lens._utils.optional import versions
from psr_lens.apps.demo.chat_demo import ChatDemoConfig
from psr_lens.apps.demo.organism_demo import DemoConfig
from psr_lens.apps.pipeline import RunConfig, read_config, run, run_folder
from psr_lens.apps.pipeline.run_folder import claim, folder_names
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import model_content
from psr_lens.models.identity_by_content import former_identity


@pytest.mark.parametrize(
    "names",
    [
        ["rank 1", "rank-1"],
        ["A", "a"],
        ["a/b", "a b", "a-b", "A:B"],
        ["größe", "gro\u0308ße", "GRÖSSE"],
        ["", ".", "..", "method", "Method"],
        ["x" * 300, "x" * 301, "x" * 60],
        ["CON", "con.txt", "nul", "fine"],
        ["ﬁt", "fit"],
    ],
    ids=lambda names: names[0] or "empty",
)
def test_no_two_methods_share_a_folder_even_where_case_does_not_count(names, tmp_path):
    found = folder_names(names)
    assert list(found) == names
    assert len({run_folder._folded(each) for each in found.values()}) == len(names)
    for folder in found.values():
        (tmp_path / folder).mkdir()
    assert len(list(tmp_path.iterdir())) == len(names)


def test_a_name_that_could_be_anothers_with_a_digest_gets_one_too():
    taken = folder_names(["rank 1", "rank-1"])["rank 1"]
    found = folder_names(["rank 1", "rank-1", taken, taken.upper()])
    assert len({each.casefold() for each in found.values()}) == 4
    assert found["rank 1"] == taken


def test_ordinary_names_are_their_own_folders():
    names = ["A-PSR", "S-Const DiM", "rank 4", "ours_2.0"]
    assert list(folder_names(names).values()) == ["A-PSR", "S-Const-DiM", "rank-4", "ours_2.0"]


@given(st.lists(st.text(max_size=70), unique=True, max_size=6))
def test_folders_of_any_names_differ(names):
    found = folder_names(names).values()
    assert len({run_folder._folded(each) for each in found}) == len(names)
    assert all(each not in ("", ".", "..") and len(each.encode()) < 255 and "/" not in each for each in found)


CONFIG = RunConfig(model="organism", questions="q.txt", out="out").resolved(3)


def test_only_the_same_model_settings_questions_and_versions_resume_a_run(fresh, tmp_path, monkeypatch):
    out, model = tmp_path / "out", fresh.model
    assert not claim(out, CONFIG, "questions", None)
    assert not out.exists()
    assert not claim(out, CONFIG, "questions", model)
    assert claim(out, CONFIG, "questions", model)
    assert claim(out, replace(CONFIG, out="elsewhere", questions="moved.txt"), "questions", None)
    for part, wanted in {"seed": (replace(CONFIG, seed=1), "questions"), "questions": (CONFIG, "others")}.items():
        with pytest.raises(InputError, match=rf"another run \(different: {part}\)"):
            claim(out, *wanted, model)
    bias = next(each for each in model.parameters() if each.ndim == 1)
    with torch.no_grad():
        bias[2] += 1e-4
    with pytest.raises(InputError, match=r"another run \(different: model_found\)"):
        claim(out, CONFIG, "questions", model)
    monkeypatch.setattr(run_folder, "versions", lambda: (("torch", "1.0"),))
    with pytest.raises(InputError, match=r"another run \(different: versions\)"):
        claim(out, CONFIG, "questions", None)


def test_a_run_of_format_1_is_resumed_with_the_model_that_it_was_begun_with(tiny_llama, fresh, tmp_path):
    settings = {name: value for name, value in asdict(CONFIG).items() if name not in ("out", "questions", "verify", "also_at")}
    older = {"format": 1, **settings, "questions": "questions", "model_found": former_identity(tiny_llama.model)}
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "identity.json").write_text(json.dumps(older))
    assert claim(tmp_path, CONFIG, "questions", tiny_llama.model)
    assert claim(tmp_path, CONFIG, "questions", None)
    next(fresh.model.parameters()).data.zero_()
    with pytest.raises(InputError, match="model_found"):
        claim(tmp_path, CONFIG, "questions", fresh.model)


def test_a_run_from_before_settings_were_recorded_is_resumed_and_other_settings_are_another_run(load, tmp_path):
    model = copy.deepcopy(load("llama", "bridge").model)
    assert not claim(tmp_path, CONFIG, "questions", model)
    norm = model.blocks[0].ln1.original_component
    kept, norm.variance_epsilon = norm.variance_epsilon, 1.0
    with pytest.raises(InputError, match=r"another run \(different: model_found\)"):
        claim(tmp_path, CONFIG, "questions", model)
    norm.variance_epsilon = kept
    assert claim(tmp_path, CONFIG, "questions", model)
    path = tmp_path / "kept" / "identity.json"
    recorded = json.loads(path.read_text())
    del recorded["model_found"]["settings"]
    path.write_text(json.dumps(recorded))
    assert claim(tmp_path, CONFIG, "questions", model)
    recorded["model_found"]["weights"] = "of another"
    path.write_text(json.dumps(recorded))
    with pytest.raises(InputError, match=r"another run \(different: model_found\)"):
        claim(tmp_path, CONFIG, "questions", model)


# --- older versions -------------------------------------------------------------------------------------------------------------

SAMPLING = {"temperature": 1.0, "max_new_tokens": 6, "token_budget": 16384}
"""All settings of sampling until there were `top_p` and others."""
OLDER: dict[str, Any] = {
    "instruction": "talk like a pirate .",
    "paraphrase": None,
    "judge": None,
    "methods": {"DiM": {"solver": "dim", "layers": 1, "hook": "resid_post", "span": "R", "token_budget": 8192}},
    "layers": None,
    "held_out": 0.25,
    "limit": None,
    "span": "R",
    "alpha": 1.0,
    "alphas": [1.0],
    "calibration": {
        "targets": [80.0],
        "at_prompt": True,
        "prompt_margin": 1.0,
        "maximum": 16.0,
        "steps": 6,
        "tolerance": 1.0,
    },
    "sampling": SAMPLING,
    "chat": {"system_role": None, "system": None, "place": "before", "prefix": "", "template_kwargs": {}},
    "dtype": "float32",
    "backend": "auto",
    "seed": 0,
}
"""What the file identity.json of such a version holds, but for the model and the questions."""
OLDEST = {
    **{"layers": 1, "hook": "resid_post", "solver": "dim", "objective": "mse", "rule": "relu", "span": "R", "rank": 1, "seed": 0},
    **{"start": "random", "epochs": 15, "batch_size": 16, "learning_rate": 0.001, "weight_decay": 1e-06, "regulariser": 0.1},
    **{"normalise": True, "learned_offset": False, "validation": 0.0, "patience": None, "autocast": "none", "ridge": 0.003},
    **{"relative": 0.0, "regression_steps": 40, "regression_batch": 65536, "polish_epochs": 0, "token_budget": 8192},
}
"""What it held of a fit when all solvers had the same settings."""


def record(out, **changes):
    """The folder of a run as an older version left it."""
    (out / "kept").mkdir(parents=True, exist_ok=True)
    (out / "kept" / "identity.json").write_text(json.dumps({"format": 1, "model": "m", "questions": "digest", **OLDER, **changes}))
    return out


def todays(**changes):
    given = {"instruction": "talk like a pirate .", "methods": {"DiM": {"solver": "dim", "layers": 1}}, **changes}
    return RunConfig(model="m", questions="q.txt", out="out", **{"sampling": {"max_new_tokens": 6}, **given}).resolved(3)


@pytest.mark.parametrize("record_format", [1, 2])
def test_settings_that_a_run_was_begun_without_have_their_defaults(tiny_llama, tmp_path, record_format):
    identity = former_identity if record_format == 1 else model_content
    of_format = {"model_found": identity(tiny_llama.model)} | ({} if record_format == 1 else {"versions": dict(versions())})
    out = record(tmp_path, format=record_format, **json.loads(json.dumps(of_format)))
    assert claim(out, todays(), "digest", tiny_llama.model)
    assert claim(out, todays(verify=False), "digest", tiny_llama.model)
    assert claim(out, todays(also_at=[0.0]), "digest", tiny_llama.model)  # what the report shows besides
    for changes, name in (
        ({"sampling": {"max_new_tokens": 6, "top_p": 0.9}}, "sampling"),
        ({"sampling": {"max_new_tokens": 6, "stop": ["arr"]}}, "sampling"),
        ({"sampling": {"max_new_tokens": 7}}, "sampling"),
        ({"chat": {"place": "default_system"}}, "chat"),
        ({"methods": {"DiM": {"solver": "dim", "layers": 2}}}, "methods"),
    ):
        with pytest.raises(InputError, match=rf"which holds another run \(different: {name}\)"):
            claim(out, todays(**changes), "digest", tiny_llama.model)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"methods": {"DiM": OLDEST}}, "the setting 'objective' with the solver 'dim'"),
        ({"sampling": {**SAMPLING, "best_of": 3}}, "unknown setting 'best_of'"),
        ({"chat": {**OLDER["chat"], "tone": "kind"}}, "unknown setting 'tone'"),
        ({"calibration": {**OLDER["calibration"], "patience": 2}}, "unknown setting 'patience'"),
        ({"methods": {}}, "layers"),
    ],
)
def test_settings_that_there_are_no_more_are_named(tmp_path, changes, why):
    with pytest.raises(
        InputError, match=rf"a run of another version of psr_lens, whose settings this one does not have .*{why}.*start over"
    ):
        claim(record(tmp_path, **changes), todays(), "digest", None)


def test_a_setting_of_a_later_version_is_another_run(tmp_path):
    with pytest.raises(InputError, match=r"which holds another run \(different: .*mood"):
        claim(record(tmp_path, mood="calm"), todays(), "digest", None)


@pytest.mark.parametrize("content", ["", "[1, 2", "[1, 2]", "3"])
def test_an_identity_that_cannot_be_read_is_an_error(tmp_path, content):
    (record(tmp_path) / "kept" / "identity.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"identity\.json: cannot be read .* delete this one to start over"):
        claim(tmp_path, todays(), "digest", None)


# --- the time that the chat template is told ------------------------------------------------------------------------------------

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }} {% endfor %}"
    "{{ 'bear' if strftime_now('%Y') == '2020' else 'fox' }}"
)


class StoppedError(Exception):
    """The run has made its prompts."""


def begin(monkeypatch, year, changes):
    """Begin a run in some year, and stop it before it samples; the prompts that it made."""
    monkeypatch.setattr("psr_lens.prompts.chat_templates._BEGAN", f"{year}-01-02T03:04:05")

    def stop(text):
        if text.startswith("no judge"):
            raise StoppedError

    config = read_config(None, changes)
    with pytest.raises(StoppedError):
        run(config, say=stop)
    return (Path(config.out) / "kept" / "prompts.jsonl").read_text()


def test_a_run_keeps_its_first_time_when_it_is_resumed_or_repeated(folders, tmp_path, monkeypatch):
    shutil.copytree(folders["llama"], tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "q.txt").write_text("\n".join(psr.organism.questions(4)))
    given = {"model": str(tmp_path / "model"), "questions": str(tmp_path / "q.txt"), "instruction": "be brief ."}
    given |= {"methods": {"DiM": {"solver": "dim", "layers": 1}}}
    out = tmp_path / "out"
    first = begin(monkeypatch, 2020, given | {"out": str(out)})
    assert begin(monkeypatch, 2021, given | {"out": str(tmp_path / "other")}) != first
    kept = yaml.safe_load((out / "run.yaml").read_text())
    assert kept["chat"]["template_kwargs"] == {"strftime_now": "2020-01-02T03:04:05"}
    (out / "kept" / "prompts.jsonl").unlink()  # as if it had been interrupted before it wrote them
    assert begin(monkeypatch, 2021, given | {"out": str(out)}) == first
    assert begin(monkeypatch, 2021, kept) == first
    assert begin(monkeypatch, 2021, kept | {"out": str(tmp_path / "again")}) == first
    assert yaml.safe_load((out / "run.yaml").read_text()) == kept
    with pytest.raises(InputError, match=r"another run \(different: chat\)"):
        run(read_config(None, kept | {"chat": {"template_kwargs": {"strftime_now": "2022-01-01T00:00:00"}}}), say=lambda text: None)


def test_a_run_whose_template_asks_for_no_time_records_none(tiny_llama):
    assert todays().at_one_time(tiny_llama.model.tokenizer, None) == todays()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "given", ["0.5", 1.5, ("a",), [0.5, "1"], [True], [float("nan")], [10**400]], ids=lambda each: str(each)[:9]
)
@pytest.mark.parametrize(
    "settings",
    [
        partial(RunConfig, model="m", questions="q.txt", out="out"),
        DemoConfig,
        partial(ChatDemoConfig, "folder"),
    ],
    ids=["run", "demo", "chat demo"],
)
def test_further_strengths_of_the_report_are_numbers(settings, given):
    with pytest.raises(
        InputError, match=r"also_at: got .*, expected a list of strengths, such as \[0, 0.5, 1.5\]; an empty one leaves them out"
    ):
        settings(also_at=given)
    assert list(settings(also_at=[0, 1.5]).also_at) == [0, 1.5]


@pytest.mark.usefixtures("unchecked")
def test_a_run_may_show_no_further_strengths():
    assert RunConfig(model="m", questions="q.txt", out="out", also_at=[]).resolved(3).also_at == []
