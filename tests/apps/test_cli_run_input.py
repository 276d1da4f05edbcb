"""What `psr-lens run` refuses, and how it ends when something goes wrong."""

import pytest
from run_command import run, written

from psr_lens.apps import pipeline
from psr_lens.errors import FitError


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "organsm"], "error: model: got 'organsm', expected 'organism'"),
        (["--questions", "nowhere.txt"], "error: questions: got nowhere.txt"),
        (["--layers", "7"], "layers: got 7, expected 'all' or layers from 0 to 2"),
        (["--layers", "every"], "layers: got 'every', expected"),
        (["--held-out", "1.5"], "held_out: got 1.5, expected a share"),
        (["--held-out", "half"], "held_out: got 'half', expected a share"),
        (["--limit", "1"], "limit: got 1, expected a whole number of at least 2"),
        (["--dtype", "int8"], "dtype: got 'int8', expected one of auto, float32, bfloat16, float16"),
        (["--backend", "jax"], "backend: got 'jax', expected one of"),
        (["--judge", "jury"], "judge: got 'jury', expected one of"),
        (["--seed", "-1"], "seed: got -1, expected a whole number"),
        (["--instruction", " "], "instruction: got ' ', expected a text"),
        (["--config", "nowhere.yaml"], "config: got nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, folders, questions, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    good = {"--model": folders["llama"], "--questions": questions, "--instruction": "be brief .", "--out": tmp_path / "out"}
    given = good | dict([options])
    code, output = run(*(part for pair in given.items() for part in pair), "--max-new-tokens", 4)
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert "error: " in output


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model: got None, expected a text. Give `--model …`"),
        ({"sampling": {"max_tokens": 3}}, "sampling: unknown setting 'max_tokens'. Did you mean"),
        ({"chat": {"sytem": "x"}}, "chat: unknown setting 'sytem'. Did you mean 'system'?"),
        ({"methods": {"A": 3}}, "methods.A: got 3, expected a mapping"),
        ({"methods": {"A": {"solvr": "dim"}}}, "config: unknown setting 'solvr'"),
        ({"methods": {"prompt": {}}}, "methods: got the name 'prompt', expected another name"),
        ({"methods": []}, "methods: got [], expected a mapping"),
        ({"calibration": {"targets": 80}}, "targets: got 80, expected a list"),
        ({"judge": {"trait": "organism:sea", "coherence": "jury"}}, "judge.coherence: got 'jury', expected one of"),
        ({"judge": 3}, "judge: got 3, expected a judge's name"),
        ({"alpha": -1}, "alpha: got -1, expected a number, 0 or more"),
        ({"jugde": "x"}, "config: unknown setting 'jugde'. Did you mean 'judge'?"),
    ],
)
def test_bad_settings_are_named(tmp_path, settings, changes, message):
    code, output = run("--config", written(tmp_path, settings | changes), "--dry-run")
    assert code == 2, output
    assert message in output
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("unchecked")
def test_an_option_does_not_hide_that_the_files_setting_is_no_mapping(tmp_path, settings):
    code, output = run("--config", written(tmp_path, settings | {"sampling": 3}), "--max-new-tokens", 4, "--dry-run")
    assert code == 2, output
    assert "sampling: got 3, expected a mapping" in output


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (FitError("the loss is not finite."), 1), (OSError("full"), 1)]
)
def test_ctrl_c_ends_with_130_and_a_failure_with_1(monkeypatch, tmp_path, settings, error, code):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(pipeline, "run", fail)
    found, output = run("--config", written(tmp_path, settings))
    assert found == code
    assert "Traceback" not in output
