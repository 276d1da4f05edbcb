"""Caches of the model type `psr` of lm-evaluation-harness, and what it refuses."""

from typing import Any

import pytest
import torch
from steered_lm import QUESTIONS, Steered, asked, steered_by

from psr_lens.errors import ArtifactError, InputError, ModelError

pytest.importorskip("lm_eval", reason="lm_eval is not installed; `make test-lm-eval` runs this in an environment of its own")

from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model

import psr_lens.apps.lm_eval_model  # registers the model type


@pytest.fixture(scope="module")
def steered(load, folders, tmp_path_factory) -> Steered:
    return steered_by(load("organism", "bridge"), folders["organism"], tmp_path_factory.mktemp("psr"))


def test_a_cache_of_answers_serves_one_model_at_one_strength(steered, tmp_path):
    file = str(tmp_path / "answers.db")
    request = asked("loglikelihood", (QUESTIONS[0], " arr"))
    first = CachingLM(steered.model(), file).loglikelihood(request)
    assert CachingLM(steered.model(), file).loglikelihood(request) == first
    with pytest.raises(InputError, match="use_cache: got a file with answers of another model, or with other steering"):
        CachingLM(steered.model(alpha=0.5), file)
    plain = str(tmp_path / "plain.db")
    CachingLM(steered.model("hf"), plain).loglikelihood(request)
    with pytest.raises(InputError, match="use_cache: got a file with answers"):
        CachingLM(steered.model(), plain)


def test_a_cache_tells_models_and_settings_apart_by_their_content(steered, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(steered.folder, dtype=torch.float32)

    def trained() -> Any:
        model = loaded()
        with torch.no_grad():
            model.lm_head.weight[5, 7] += 1
        return model

    def ours(pretrained: Any, **settings: Any) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(steered.folder)
        return get_model("psr")(
            pretrained=pretrained, tokenizer=tokenizer, artifact=steered.artifact, device="cpu", **{"dtype": "float32", **settings}
        )

    folder = tmp_path / "model"
    loaded().save_pretrained(folder)
    file = str(tmp_path / "answers.db")
    request = asked("loglikelihood", (QUESTIONS[0], " arr"))
    first = CachingLM(ours(loaded()), file).loglikelihood(request)
    assert CachingLM(ours(loaded()), file).loglikelihood(request) == first
    repeats = loaded()
    repeats.generation_config.repetition_penalty = 1.3
    others = [ours(trained()), ours(repeats), *(ours(loaded(), **each) for each in ({"max_length": 12}, {"add_bos_token": False}))]
    for other in (*others, ours(loaded(), prefix_token_id=2), ours(steered.folder, dtype="bfloat16")):
        with pytest.raises(
            InputError, match="use_cache: got a file with answers of another model, or with other steering or settings"
        ):
            CachingLM(other, file)
    for name, change in (("folder.db", trained), ("same.db", loaded)):
        CachingLM(ours(str(folder)), str(tmp_path / name)).loglikelihood(request)
        change().save_pretrained(folder)
        if change is trained:
            with pytest.raises(InputError, match="use_cache: got a file with answers"):
                CachingLM(ours(str(folder)), str(tmp_path / name))
        loaded().save_pretrained(folder)
    CachingLM(ours(str(folder)), str(tmp_path / "same.db"))


def test_a_cache_is_refused_for_a_model_that_cannot_be_told_from_others(steered, tmp_path):
    model = steered.model()
    hook = model.model.model.layers[0].register_forward_hook(lambda module, args, output: None)
    with pytest.raises(
        InputError, match=r"use_cache: got hooks on the model \(a hook on model\.layers\.0\), expected a model that can be"
    ):
        CachingLM(model, str(tmp_path / "answers.db"))
    hook.remove()
    CachingLM(model, str(tmp_path / "answers.db"))


def test_several_processes_are_refused(steered, monkeypatch):
    monkeypatch.setattr(get_model("psr"), "world_size", property(lambda self: 2))
    with pytest.raises(InputError, match="model: got requests shared out to 2 processes, expected one process"):
        steered.model()


def test_arguments_that_do_not_fit_are_refused_before_anything_is_evaluated(steered, folders, tmp_path):
    with pytest.raises(InputError, match="alpha: got nan, expected a finite number"):
        steered.model(alpha=float("nan"))
    with pytest.raises(InputError, match="artifact: got 12, expected the folder of a replacement or a plan"):
        steered.model(artifact=12)
    with pytest.raises(InputError, match="artifact: got None, expected the folder of a replacement or a plan"):
        get_model("psr")(pretrained=steered.folder, device="cpu")
    with pytest.raises(ArtifactError):
        steered.model(artifact=str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="tp_plan: got 'auto', expected none"):
        steered.model(tp_plan="auto")
    with pytest.raises(ArtifactError, match="model"):
        get_model("psr")(pretrained=str(folders["llama"]), artifact=steered.artifact, device="cpu", batch_size=1)


def test_a_batch_whose_contexts_are_unknown_is_refused(steered):
    model = steered.model()
    with pytest.raises(InputError, match="inps: got tokens of which it is not known where their context ends"):
        model._model_call(torch.tensor([[1, 2, 3]]))
    rows = psr_lens.apps.lm_eval_model._looked_up
    with pytest.raises(ModelError, match="a batch has a row that is the text of no request"):
        rows(torch.tensor([[1, 2, 3]]), {(1, 2): (0, 0, 0)})


def test_nothing_stays_on_the_model(steered):
    model = steered.model()
    model.loglikelihood(asked("loglikelihood", (QUESTIONS[0], " arr")), disable_tqdm=True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
