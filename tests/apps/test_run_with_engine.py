"""`psr-lens run --engine vllm`, before a server that answers as vLLM does with what the run has fitted."""

import json
import os
import shlex

import oracles
import pytest
import yaml
from fake_vllm import SteeringServer, running
from run_command import run, written

from psr_lens.apps.pipeline import RunConfig, plan_run, read_config
from psr_lens.apps.pipeline import steps as runs
from psr_lens.engines import vllm_server
from psr_lens.errors import InputError

GREEDY = {"temperature": 0, "max_new_tokens": 6}


@pytest.fixture
def fake(load, folders, monkeypatch):
    monkeypatch.setattr(vllm_server, "_PAUSE", 0.01)
    case = load("llama", "bridge")
    made = SteeringServer(case.model, oracles.transformer(folders["llama"]))
    with running(made) as made.url:
        yield made


@pytest.fixture
def quick(settings, fake):
    return settings | {"sampling": GREEDY, "engine": f"vllm:{fake.url}", "alphas": [1.0]}


def told_folders(output):
    """The folders in the command that the error names."""
    command = output[
        output.index("`psr-lens serve") + 1 : output.index("`, with the same further options behind `--` as before, then")
    ]
    return shlex.split(command)[3:]


def serve(fake, folders):
    fake.serving = {os.path.basename(folder): folder for folder in folders}


def sampled(fake):
    return [body for path, _, body in fake.asked if path == "/v1/completions" and "prompt_logprobs" not in body]


@pytest.mark.slow
def test_a_run_samples_on_the_server_and_goes_on_once_it_serves_what_was_fitted(tmp_path, quick, fake, no_report, monkeypatch):
    file = written(tmp_path, quick | {"judge": "language:fr"})
    code, output = run("--config", file)
    assert code == 2
    assert "engine: got one that does not serve 'A-PSR', 'joint', 'S-Const DiM', which this run has fitted, expected one" in output
    assert "then run this again: it goes on from here" in output
    before = sampled(fake)
    assert len(before) == 9  # the responses to the prompt; nothing has been sampled with a method
    assert not any("vllm_xargs" in body for body in before)
    folders = told_folders(output)
    assert [os.path.basename(each) for each in folders] == ["A-PSR", "joint", "S-Const-DiM"]

    serve(fake, folders)
    monkeypatch.setattr(runs, "fit", lambda *_, **__: pytest.fail("fitted again"))
    code, output = run("--config", file)
    assert code == 0, output
    assert "resuming the run" in output
    after = sampled(fake)[len(before) :]
    assert not {tuple(body["prompt"]) for body in after if "vllm_xargs" not in body} & {tuple(body["prompt"]) for body in before}
    assert any("vllm_xargs" in body for body in after)
    out = tmp_path / "out"
    assert json.loads((out / "results.json").read_text())["engine"] == "vllm 0, float32, abc"
    assert yaml.safe_load((out / "run.yaml").read_text())["engine"] == quick["engine"]

    # Greedy answers are those of a run of the model itself, apart from the engine's name.
    answers = (out / "answers.jsonl").read_bytes()
    monkeypatch.undo()
    monkeypatch.setattr("psr_lens.apps.pipeline.steps.report", lambda *_, **__: None)
    code, output = run(
        "--config", written(tmp_path, quick | {"judge": "language:fr", "engine": None, "out": str(tmp_path / "own")})
    )
    assert code == 0, output
    assert (tmp_path / "own" / "answers.jsonl").read_bytes() == answers
    own = json.loads((tmp_path / "own" / "results.json").read_text())
    assert own["engine"] is None
    assert own["relative_rmse"] == json.loads((out / "results.json").read_text())["relative_rmse"]


@pytest.mark.slow
def test_a_finished_run_samples_nothing_again_and_its_server_may_have_moved(tmp_path, quick, fake, no_report):
    file = written(tmp_path, quick)
    _, output = run("--config", file)
    serve(fake, told_folders(output))
    code, output = run("--config", file)
    assert code == 0, output
    answers = (tmp_path / "out" / "answers.jsonl").read_bytes()
    count = len(sampled(fake))
    with running(fake) as elsewhere:
        code, output = run("--config", file, "--engine", f"vllm:{elsewhere}")
    assert code == 0, output
    assert len(sampled(fake)) == count
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == answers
    assert no_report


def test_a_run_is_not_continued_on_another_engine(tmp_path, quick, fake, no_report):
    run("--config", written(tmp_path, quick))
    fake.about = fake.about.__class__(**{**vars(fake.about), "identity": "vllm 1, bfloat16, abc"})
    code, output = run("--config", written(tmp_path, quick))
    assert (code, "which holds another run (different: engine_found)" in output) == (2, True)
    code, output = run("--config", written(tmp_path, quick | {"engine": None}))
    assert code == 2
    assert "engine" in output.partition("(different:")[2]


@pytest.mark.slow
def test_a_run_that_was_begun_before_there_were_engines_is_resumed(tmp_path, settings, no_report):
    file = written(tmp_path, settings | {"sampling": GREEDY})
    code, output = run("--config", file)
    assert code == 0, output
    identity = tmp_path / "out" / "kept" / "identity.json"
    kept = json.loads(identity.read_text())
    assert kept.pop("engine") is None
    assert kept.pop("engine_found") is None
    identity.write_text(json.dumps(kept))
    code, output = run("--config", file)
    assert (code, "resuming the run" in output) == (0, True)


@pytest.mark.slow
def test_the_key_goes_to_the_address_on_the_command_line_alone(tmp_path, quick, fake, no_report, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "a secret")
    code, output = run("--config", written(tmp_path, quick), "--engine-key-env", "VLLM_API_KEY")
    assert code == 2
    assert "--engine-key-env: got VLLM_API_KEY, expected --engine too" in output
    assert not fake.asked
    given = ("--config", written(tmp_path, quick), "--engine", quick["engine"], "--engine-key-env", "VLLM_API_KEY")
    code, first = run(*given)
    assert (code, "which this run has fitted" in first) == (2, True), first
    serve(fake, told_folders(first))
    code, second = run(*given)
    assert code == 0, second
    assert no_report  # drawn from what was sampled
    assert {key for _, key, _ in fake.asked} == {"Bearer a secret"}
    assert "a secret" not in output + first + second
    files = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert {"results.json", "answers.jsonl", "run.yaml"} <= {each.name for each in files}
    assert not [each for each in files if b"a secret" in each.read_bytes()]


def test_no_message_shows_what_may_be_a_key_or_a_password(tmp_path, settings, monkeypatch):
    file = written(tmp_path, settings)
    engine = ("--engine", "vllm:http://127.0.0.1:9/v1")
    for further in ((), engine):
        code, output = run("--config", file, *further, "--engine-key-env", "sk-supersecret")
        assert (code, "--engine-key-env: got something that is not such a name (not shown" in output) == (2, True), output
        assert "supersecret" not in output
    for key, message in ((None, "It is not set."), ("sec\nret", "Set it again.")):
        if key is not None:
            monkeypatch.setenv("SERVER_KEY", key)
        code, output = run("--config", file, *engine, "--engine-key-env", "SERVER_KEY")
        assert (code, "--engine-key-env: got 'SERVER_KEY', expected an environment" in output) == (2, True), output
        assert message in output
        assert "sec" not in output
    for given in ("http://user:hunter2@host:8000/v1", "http://host/v1?token=hunter2", "sglang:http://host/v1#hunter2"):
        with pytest.raises(InputError, match="engine: got an address with a user, a query or a fragment") as caught:
            RunConfig(**settings | {"engine": given})
        assert "hunter2" not in str(caught.value)
    with pytest.raises(InputError, match="the environment variable that --engine-key-env names") as caught:
        RunConfig(**settings | {"engine": "vllm:http://user:hunter2@host:8000/v1"})
    assert "hunter2" not in str(caught.value)


def test_settings_that_name_no_engine_or_mean_something_else_in_vllm_are_refused_before_anything_is_read(settings):
    for given, message in (
        ("sglang", "engine: got 'sglang', expected `vllm`, or `vllm:` and the address of a server"),
        ("vllm:", "engine: got ''"),
        ("vllm:127.0.0.1:8000", "engine: got '127.0.0.1:8000', expected the address of a server"),
    ):
        with pytest.raises(InputError, match=message):
            RunConfig(**settings | {"engine": given})
    with pytest.raises(InputError, match=r"temperature: got 0\.001, expected 0, or at least 0\.01 with vLLM"):
        RunConfig(**settings | {"engine": "vllm", "sampling": {"temperature": 0.001}})
    assert RunConfig(**settings | {"engine": "vllm"}).engine_address == "http://127.0.0.1:8000/v1"


def test_the_plan_says_where_answers_are_sampled_and_asks_no_server(tmp_path, settings):
    plan = plan_run(read_config(written(tmp_path, settings | {"engine": "vllm:http://10.0.0.1:8000/v1"}), {}))
    assert "vLLM at http://10.0.0.1:8000/v1, which has to serve the methods once they are fitted" in str(plan)
    assert "vLLM" not in str(plan_run(read_config(written(tmp_path, settings), {})))
