"""`psr.engines.vllm`: the same responses as the model's own, and what it refuses."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own")

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from helpers import pairs_of, random_replacement
from vllm_models import CONTEXT

import psr_lens as psr
from psr_lens.engines.vllm_engine import _tokens
from psr_lens.errors import InputError, ModelError
from psr_lens.models import fingerprint

FEW = psr.SamplingConfig(temperature=0, max_new_tokens=10)


@pytest.fixture(scope="module")
def model(tiny_for_vllm):
    return psr.load_model(tiny_for_vllm("llama").folder, backend="bridge")


@pytest.fixture(scope="module")
def sampled(llama, model):
    """The engine, and the replacements as fitted on the model; what they do is what their artifacts do."""
    tiny, llm = llama
    return psr.engines.vllm(llm), tiny.steering


def test_greedy_responses_are_those_of_the_model(model, sampled):
    engine, steering = sampled
    pairs = pairs_of(model, 12)
    for name in (None, "post", "rules", "plan", "mlp"):
        given = None if name is None else steering[name]
        for context, alpha in (("base", 1.0), ("prompted", list(np.linspace(-1, 1, 12)))):
            settings = {"context": context, "alpha": alpha, "sampling": FEW}
            found = psr.generate(model, pairs, given, engine=engine, **settings)
            assert found == psr.generate(model, pairs, given, **settings)
    both = steering["post"] * 0.5 + steering["last"]
    assert psr.generate(model, pairs, both, sampling=FEW, engine=engine) == psr.generate(model, pairs, both, sampling=FEW)


def test_a_seed_gives_the_same_responses_again_and_each_pair_has_its_own(model, sampled):
    engine, steering = sampled
    pairs = list(pairs_of(model, 1)) * 6
    config = psr.SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=10, seed=5)
    first = psr.generate(model, pairs, steering["post"], sampling=config, engine=engine)
    assert psr.generate(model, pairs[:2], steering["post"], sampling=config, streams=[3, 1], engine=engine) == [first[3], first[1]]
    assert len({each.ids for each in first}) > 1
    other = psr.generate(model, pairs, steering["post"], sampling=replace(config, seed=6), engine=engine)
    assert other != first


def test_settings_of_sampling_mean_what_they_mean_elsewhere(model, sampled):
    engine, steering = sampled
    pairs = pairs_of(model, 6)
    whole = psr.generate(model, pairs, steering["post"], sampling=FEW)
    text = model.tokenizer.decode(whole[0].ids[3:5])
    for changed in ({"stop": [text]}, {"repetition_penalty": 1.5}, {"min_new_tokens": 8}, {"max_new_tokens": 1}):
        config = replace(FEW, **changed)
        found = psr.generate(model, pairs, steering["post"], sampling=config, engine=engine)
        assert found == psr.generate(model, pairs, steering["post"], sampling=config)


def test_what_the_engine_refuses(model, sampled):
    engine, _ = sampled
    pairs = pairs_of(model, 1)
    with pytest.raises(
        InputError, match=r"engine: got one that serves 'post', .* expected one that also serves this replacement \(random\)"
    ):
        psr.generate(model, pairs, random_replacement(model), engine=engine)
    both = replace(FEW, stop=["a"], min_new_tokens=2)
    with pytest.raises(InputError, match="one of them with vLLM"):
        psr.generate(model, pairs, sampling=both, engine=engine)
    for changed, message in (
        ({"temperature": 0.005}, "temperature: got 0.005, expected 0, or at least 0.01 with vLLM"),
        ({"temperature": 1.0, "min_p": 0.1, "top_p": 0.9}, "`min_p` together with `top_p` or `top_k`"),
        ({"temperature": 1.0, "min_p": 0.1, "top_k": 5}, "`min_p` together with `top_p` or `top_k`"),
    ):
        with pytest.raises(InputError, match=message):
            psr.generate(model, pairs, sampling=replace(FEW, **changed), engine=engine)
    other = psr.load_model("organism")
    with pytest.raises(InputError, match="engine: got one whose model has n_layers=3, expected the model's own n_layers=6"):
        psr.generate(other, pairs_of(other, 1), engine=engine)
    with pytest.raises(InputError, match=r"llm: got int, expected a vllm\.LLM, or the address of a server"):
        psr.engines.vllm(8000)
    with pytest.raises(InputError, match=r"api_key_env: got KEY, expected None with a vllm\.LLM"):
        psr.engines.vllm(engine._llm, api_key_env="KEY")
    assert fingerprint(model)["n_layers"] == 3
    assert model.cfg.n_ctx == CONTEXT


def test_another_model_of_the_same_sizes_is_refused(tiny_for_vllm, model, sampled, tmp_path):
    engine, _ = sampled
    tuned = copy.deepcopy(tiny_for_vllm("llama").hf)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight.add_(weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
    tuned.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    other = psr.load_model(tmp_path, backend="bridge")
    with pytest.raises(InputError, match=r"engine: got one whose log probabilities differ from the model's by"):
        psr.generate(other, pairs_of(other, 1), sampling=FEW, engine=engine)
    changed = psr.load_model(tiny_for_vllm("llama").folder, backend="bridge")
    changed.tokenizer.add_tokens(["<|new|>"])
    with pytest.raises(InputError, match="engine: got one with another vocabulary"):
        psr.generate(changed, pairs_of(changed, 1), sampling=FEW, engine=engine)


def test_identity_has_what_changes_logits(sampled, monkeypatch):
    engine, _ = sampled
    config = engine._llm.llm_engine.vllm_config
    found = [engine.identity, engine.identity]
    assert len(set(found)) == 1
    for of, name, value in (
        (config.model_config, "quantization", "fp8"),
        (config.cache_config, "cache_dtype", "fp8"),
        (config.model_config.hf_config, "rms_norm_eps", 0.5),
        (config.model_config, "logits_processors", ["a.b"]),
        (config, "speculative_config", SimpleNamespace(method="ngram", num_speculative_tokens=2)),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(of, name, value)
            found.append(engine.identity)
    assert len(set(found)) == 6


def test_responses_that_are_broken_are_no_responses():
    for reason, logprob, message in (("stop", math.nan, "not finite"), ("length", -math.inf, "not finite"), ("abort", 0, "abort")):
        with pytest.raises(ModelError, match=message):
            _tokens(SimpleNamespace(finish_reason=reason, cumulative_logprob=logprob, token_ids=[1]))


def test_evaluate_and_sample_responses_take_it(model, sampled):
    engine, steering = sampled
    pairs = pairs_of(model, 4)
    assert psr.sample_responses(model, pairs, sampling=FEW, engine=engine) == psr.sample_responses(model, pairs, sampling=FEW)
    curves = psr.Calibration(alphas=(0.5, 1.0), targets=(), at_prompt=False)
    judge = psr.judges.organism("pirate")
    given = (model, pairs, {"post": steering["post"]}, judge)
    found = [psr.evaluate(*given, calibration=curves, sampling=FEW, engine=each) for each in (engine, None)]
    assert [point.answers for point in found[0].curves["post"]] == [point.answers for point in found[1].curves["post"]]
