"""`psr-lens run` with vLLM's own server in place of the model's sampling."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own")

from vllm_server import vllm_server

import psr_lens as psr
from psr_lens.apps.pipeline import RunConfig, run
from psr_lens.errors import InputError

MIDDLEWARE = ("--middleware", "psr_lens.serving.middleware.SteeredModels")


def test_a_run_goes_on_when_its_methods_are_served_and_greedy_answers_are_the_models_own(tiny_for_vllm, tmp_path, monkeypatch):
    tiny = tiny_for_vllm("llama")
    (tmp_path / "questions.txt").write_text("\n".join(psr.organism.questions(12)))
    monkeypatch.setattr("psr_lens.apps.pipeline.steps.report", lambda *_, **__: None)
    own = RunConfig(
        model=str(tiny.folder),
        questions=str(tmp_path / "questions.txt"),
        out=str(tmp_path / "own"),
        instruction="talk like a pirate .",
        methods={"A-PSR": {"regression_steps": 3}, "S-Const DiM": {"solver": "dim", "layers": 1}},
        sampling={"temperature": 0, "max_new_tokens": 6},
    )
    with vllm_server(tiny, *MIDDLEWARE) as server:
        config = replace(own, engine=f"vllm:{server.url}/v1", out=str(tmp_path / "out"))
        with pytest.raises(
            InputError, match="engine: got one that does not serve 'A-PSR', 'S-Const DiM', which this run has fitted"
        ):
            run(config, device="cpu")
    fitted = {folder.name: str(folder) for folder in Path(config.out, "artifacts").iterdir()}
    with vllm_server(tiny._replace(saved=fitted), *MIDDLEWARE, port=server.port):
        result = run(config, device="cpu")
    assert result.answers == run(own, device="cpu").answers
    assert len(set(result.answers.values())) > 2
