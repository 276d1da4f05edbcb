"""What an engine does not start with, and what a request may not ask for."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own")

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.v1.worker.gpu_worker import Worker
from vllm_models import replacement_at

from psr_lens.errors import ArtifactError, InputError, ModelError
from psr_lens.serving import places, plugin
from psr_lens.serving.served import CONFIG, served_by
from psr_lens.serving.steered_model import TokenStrengths


def test_the_plugin_needs_no_transformer_lens():
    code = "import sys; sys.modules['transformer_lens'] = None; import psr_lens.serving.plugin as p; p.register(); print('fine')"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert finished.stdout.strip().endswith("fine"), finished.stderr


REFUSED = {
    "no folder": ({}, {"pirate": "nowhere"}, ArtifactError, "no such file"),
    "no mapping": ({}, ["pirate"], InputError, "a mapping from names to folders"),
    "width": ({}, {"d_model": 64, "kind": "hook_resid_post"}, ArtifactError, "d_model=64"),
    "layers": ({}, {"n_layers": 9, "kind": "hook_resid_post"}, ArtifactError, "n_layers=9"),
    "processed": ({}, {"processing": "fold_ln", "kind": "hook_resid_post"}, ArtifactError, "had processed"),
    "hook point": ({}, {"kind": "hook_resid_pre"}, ArtifactError, "nothing can be attached at 'blocks.0.hook_resid_pre'"),
    "queries": ({}, {"kind": "attn.hook_q"}, ArtifactError, "nothing can be attached"),
    "LoRA": ({"enable_lora": True}, {"kind": "hook_resid_post"}, ModelError, "together with LoRA"),
}


@pytest.mark.parametrize(("settings", "made", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_an_engine_does_not_start(settings, made, kind, message, tiny_for_vllm, engine, tmp_path):
    tiny = tiny_for_vllm("llama")
    if "kind" in made:
        made = {"pirate": str(replacement_at(tiny.hf.config, **made).save(tmp_path / "pirate"))}
    with pytest.raises(kind, match=message), engine(tiny, additional_config={"psr": made}, **settings):
        pass


def test_the_v2_runner_and_several_processes_are_refused():
    alone = SimpleNamespace(world_size=1, data_parallel_size=1, enable_dbo=False)
    config = SimpleNamespace(
        use_v2_model_runner=False,
        parallel_config=alone,
        lora_config=None,
        kv_transfer_config=None,
        speculative_config=SimpleNamespace(method="ngram"),
        cache_config=SimpleNamespace(kv_sharing_fast_prefill=False),
        model_config=SimpleNamespace(runner_type="generate"),
    )
    places._check_engine(config)
    for changed, message in (
        ({"use_v2_model_runner": True}, r"with the V2 model runner\. Start the engine with VLLM_USE_V2_MODEL_RUNNER=0\."),
        ({"speculative_config": SimpleNamespace(method="eagle")}, "drafts by another method than ngram"),
        ({"parallel_config": SimpleNamespace(world_size=2, data_parallel_size=1, enable_dbo=False)}, "tensor, pipeline"),
        ({"kv_transfer_config": "connector"}, "together with a KV connector"),
    ):
        with pytest.raises(ModelError, match=message):
            places._check_engine(SimpleNamespace(**vars(config) | changed))


def test_another_architecture_is_refused(tiny_for_vllm, engine):
    tiny = tiny_for_vllm("stablelm")
    with pytest.raises(InputError, match="model: got StableLmForCausalLM, expected one of LlamaForCausalLM, "), engine(tiny):
        pass


def test_where_vllm_has_no_place_for_it_nothing_is_changed_and_nothing_served(monkeypatch):
    wrapped = []
    monkeypatch.setattr(places, "_PLACES", (*places._PLACES, ("vllm.config", "VllmConfig", "compute_tash", None)))
    monkeypatch.setattr(places, "wrap", lambda *given: pytest.fail("changed"))
    monkeypatch.setattr(plugin, "wrap", lambda at, name, wrapper: wrapped.append((at, name, wrapper)))
    plugin.register()
    ((at, name, refuse),) = wrapped
    assert (at, name) == (VllmConfig, "__post_init__")
    refuse(lambda config: None, SimpleNamespace(additional_config={}))
    with pytest.raises(ModelError, match=r"lacks vllm.config.compute_tash, where replacements take part"):
        refuse(lambda config: None, SimpleNamespace(additional_config={"psr": {}}))


def test_without_the_error_that_makes_status_400_nothing_is_changed(monkeypatch):
    monkeypatch.setattr(places, "_CLIENT_ERROR", ("vllm.exceptions", "VLLMClientTerror"))
    monkeypatch.setattr(places, "wrap", lambda *given: pytest.fail("changed"))
    assert "lacks vllm.exceptions.VLLMClientTerror, where replacements take part" in places.take_part()


def test_a_plugin_that_cannot_be_imported_starts_no_engine_that_is_to_serve(tiny_for_vllm):
    """In a process of its own; vLLM itself would only log it."""
    tiny = tiny_for_vllm("llama")
    code = (
        "import sys; sys.modules['psr_lens.serving.gates'] = None; import vllm; "
        f"vllm.LLM({str(tiny.folder)!r}, enforce_eager=True, additional_config={{'psr': {tiny.saved!r}}})"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert finished.returncode != 0
    assert "vllm: psr_lens cannot be imported (ModuleNotFoundError: import of psr_lens.serving.gates halted" in finished.stderr
    assert plugin._CONFIG == CONFIG


def test_what_is_saved_over_while_the_engine_starts_is_not_served(tiny_for_vllm, engine, monkeypatch, tmp_path):
    tiny = tiny_for_vllm("llama")
    folder = str(tiny.steering["post"].save(tmp_path / "post"))
    original = Worker.load_model

    def saved_over(*given, **named):
        tiny.steering["last"].save(folder)
        return original(*given, **named)

    monkeypatch.setattr(Worker, "load_model", saved_over)
    with (
        pytest.raises(ArtifactError, match="were saved anew while the engine started"),
        engine(tiny, additional_config={"psr": {"post": folder}}),
    ):
        pass


def test_digests_that_are_noted_change_no_hash(tiny_for_vllm):
    served = {"psr": tiny_for_vllm("llama").saved}
    config = VllmConfig(additional_config=served)
    assert config.additional_config["psr_digests"] == served_by(served).digests
    found = config.compute_hash()
    config.additional_config = served
    assert config.compute_hash() == found


def test_without_a_place_for_the_refusal_of_beam_search_nothing_is_served(monkeypatch):
    monkeypatch.setattr(places, "_BEAM_SEARCHES", (*places._BEAM_SEARCHES, ("vllm.config", "VllmConfig")))
    with pytest.raises(ModelError, match=r"lacks vllm\.config\.to_beam_search_params, where replacements take part"):
        places._refuse_beam_search()


@pytest.mark.parametrize("kind", [CompletionRequest, ChatCompletionRequest])
def test_beam_search_is_refused_since_it_would_not_be_steered(kind, llama):
    said = {"prompt": "a"} if kind is CompletionRequest else {"messages": [{"role": "user", "content": "a"}]}
    assert kind(model="m", **said, use_beam_search=True).to_beam_search_params(5, {}).max_tokens == 5
    steered = kind(model="m", **said, use_beam_search=True, vllm_xargs={"psr": "post"})
    with pytest.raises(InputError, match="use_beam_search: got True, expected no beam search"):
        steered.to_beam_search_params(5, {})


def test_a_bad_request_is_refused_and_the_next_one_answered(llama):
    tiny, llm = llama
    ids = [5, 6, 7]
    for asked in (
        {"psr": "parrot"},
        {"psr": "post", "psr_alpha": float("nan")},
        {"psr_alpha": 1},
        {"psr": "post", "psr_in_force": []},
    ):
        with pytest.raises(InputError):
            llm.generate([{"prompt_token_ids": ids}], SamplingParams(extra_args=asked), use_tqdm=False)
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, extra_args={"psr": "post"})
    (found,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
    assert list(found.outputs[0].token_ids) == tiny.greedy(ids, "post", 1.0, 5)
    assert params.extra_args == {"psr": "post"}  # what the caller holds is as it was


def test_the_probabilities_of_a_steered_prompt_are_those_of_attach(llama):
    tiny, llm = llama
    ids, start = list(range(5, 25)), 7
    asked = {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0}
    steered = SamplingParams(**asked, extra_args={"psr": "post", "psr_start_R": start})
    (found,) = llm.generate([{"prompt_token_ids": ids}], steered, use_tqdm=False)
    values = [at[token].logprob for at, token in zip(found.prompt_logprobs[1:], ids[1:], strict=True)]
    with tiny.steering["post"].attach(tiny.hf, 1.0, start=start), torch.no_grad():
        wanted = tiny.hf(torch.tensor([ids])).logits[0, :-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(values), wanted, atol=1e-3, rtol=1e-3)
    with pytest.raises(InputError, match="psr_start_R: got None, expected the first steered position in a request for"):
        llm.generate([{"prompt_token_ids": ids}], SamplingParams(**asked, extra_args={"psr": "post"}), use_tqdm=False)


def test_a_request_that_nobody_checked_is_not_computed_unsteered(tiny_for_vllm):
    served = served_by({"psr": tiny_for_vllm("llama").saved})
    with pytest.raises(ModelError, match="has not been checked"):
        TokenStrengths(served, 4, torch.device("cpu")).fill(
            [("a", SimpleNamespace(extra_args={"psr": "post"}))], np.array([0]), np.array([2])
        )
