"""The folder of a run: a name for each method that no other has, and a run that only its own folder resumes."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from psr_lens.apps.pipeline import RunConfig, run_folder
from psr_lens.apps.pipeline.run_folder import claim, folder_names
from psr_lens.errors import InputError
from psr_lens.models.content import former_identity


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


CONFIG = RunConfig(model="organism", questions="q.txt", out="out")


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
    settings = {name: value for name, value in asdict(CONFIG).items() if name not in ("out", "questions")}
    older = {"format": 1, **settings, "questions": "questions", "model_found": former_identity(tiny_llama.model)}
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "identity.json").write_text(json.dumps(older))
    assert claim(tmp_path, CONFIG, "questions", tiny_llama.model)
    assert claim(tmp_path, CONFIG, "questions", None)
    next(fresh.model.parameters()).data.zero_()
    with pytest.raises(InputError, match="model_found"):
        claim(tmp_path, CONFIG, "questions", fresh.model)
