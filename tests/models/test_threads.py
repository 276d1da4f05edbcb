"""Functions of psr_lens in several threads at once on one model: each gets what it gets alone, or a clear error."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import BACKENDS, pairs_of, random_triplets, save_tiny

import psr_lens as psr
from psr_lens.errors import ModelError
from psr_lens.generation.likelihood import log_likelihoods
from psr_lens.models import LowRank, fingerprint, frozen, hooked
from psr_lens.replacement import Adapter

GREEDY = psr.SamplingConfig(temperature=0, max_new_tokens=4)


@pytest.fixture(params=BACKENDS)
def model(request, load) -> Any:
    return load("llama-gqa", request.param).model


def together(*work: Callable[[], Any]) -> list[Any]:
    """What each function returns where all begin at once, each in a thread of its own, three times over."""
    barrier = threading.Barrier(len(work))

    def begin(function: Callable[[], Any]) -> list[Any]:
        barrier.wait()
        return [function() for _ in range(3)]

    with ThreadPoolExecutor(len(work)) as pool:
        return [found for each in pool.map(begin, work) for found in each]


def test_readings_of_different_texts_in_threads_are_what_they_are_alone(model):
    texts = [random_triplets(model, 3, seed=seed) for seed in range(3)]
    work = [
        lambda: psr.capture(model, texts[0], "z").deltas,
        lambda: psr.capture(model, texts[1], to=psr.Statistics(rank=1))["resid_post", 1].energy,
        lambda: log_likelihoods(model, texts[2]),
        lambda: psr.generate(model, [each.pair for each in texts[2]], sampling=GREEDY),
        lambda: psr.fit(model, texts[1], psr.Sequential(layers=[0, 1], regression_steps=1)).sites,
    ]
    wanted = [each() for each in work]
    for index, found in enumerate(together(*work)):
        torch.testing.assert_close(_numbers(found), _numbers(wanted[index // 3]), atol=1e-5, rtol=1e-5)


def _numbers(found: Any) -> Any:
    if isinstance(found, list) and isinstance(found[0], psr.generation.sampling.Response):
        return [each.ids for each in found]
    return {name: getattr(each, "directions", each) for name, each in found.items()} if isinstance(found, dict) else found


def test_a_hook_of_one_thread_sees_no_call_of_another(model):
    seen = []
    tokens = torch.arange(10, 14)[None]
    with hooked(model, [("blocks.0.hook_resid_post", lambda activation, hook: seen.append(activation.shape))]):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(model, tokens).result()
        assert seen == []
        model(tokens)
        assert len(seen) == 1


def test_a_model_in_training_mode_is_read_without_dropout_until_the_last_reading_has_ended(tmp_path):
    model = psr.load_model(save_tiny("gpt2", tmp_path, settings={"resid_pdrop": 0.5}), backend="bridge")
    model.train()
    inner, outer = frozen(model), frozen(model)
    with outer:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(inner.__enter__).result()
            assert not model.training
            pool.submit(inner.__exit__, None, None, None).result()
        assert not model.training
    assert model.training
    outer, inner = frozen(model), frozen(model)
    with ThreadPoolExecutor(1) as pool:  # that which began first ends first
        pool.submit(outer.__enter__).result()
        with inner:
            pool.submit(outer.__exit__, None, None, None).result()
            assert not any(each.training for each in model.modules())
    assert model.training


def test_knocked_out_heads_are_knocked_out_in_all_threads(model):
    pairs = pairs_of(model, 3)
    heads = [(layer, head) for layer in range(2) for head in range(4)]

    def answer(chosen: Any) -> Callable[[], Any]:
        return lambda: [each.ids for each in psr.generate(model, chosen, context="prompted", sampling=GREEDY)]

    with psr.patching.knock_out(model, pairs, heads):
        wanted = [answer(pairs[:1])(), answer(pairs[1:])()]
        found = together(answer(pairs[:1]), answer(pairs[1:]))
    assert found == [wanted[0]] * 3 + [wanted[1]] * 3
    assert wanted != [answer(pairs[:1])(), answer(pairs[1:])()]


def test_while_an_adapter_is_in_force_other_threads_are_refused_and_the_other_way_round(model):
    name = "model.layers.0.mlp.up_proj"
    change = LowRank(torch.ones(1, model.cfg.d_model), torch.ones(model.cfg.d_mlp, 1))
    adapter = Adapter({name: change}, 1.0, fingerprint(model), "")
    pairs = pairs_of(model, 1)
    wanted = psr.generate(model, pairs, sampling=GREEDY)
    with adapter.steer(model), ThreadPoolExecutor(1) as pool:
        with pytest.raises(ModelError, match="an adapter of another thread is in force on it"):
            pool.submit(psr.generate, model, pairs, sampling=GREEDY).result()
        assert psr.generate(model, pairs, sampling=GREEDY) != wanted
    refused = pytest.raises(ModelError, match="another thread is using it, so its weights cannot be changed")
    with frozen(model), ThreadPoolExecutor(1) as pool, refused:
        pool.submit(psr.generate, model, pairs, adapter, sampling=GREEDY).result()
    assert psr.generate(model, pairs, sampling=GREEDY) == wanted


def test_an_adapter_of_strength_0_leaves_the_weights_free_for_other_threads(model):
    name = "model.layers.0.mlp.up_proj"
    change = LowRank(torch.ones(1, model.cfg.d_model), torch.ones(model.cfg.d_mlp, 1))
    adapter = Adapter({name: change}, 1.0, fingerprint(model), "")
    pairs = pairs_of(model, 1)
    wanted = psr.generate(model, pairs, sampling=GREEDY)
    with adapter.steer(model, 0), ThreadPoolExecutor(1) as pool:
        assert pool.submit(psr.generate, model, pairs, sampling=GREEDY).result() == wanted
    with frozen(model), ThreadPoolExecutor(1) as pool:
        assert pool.submit(psr.generate, model, pairs, adapter, sampling=GREEDY, alpha=0).result() == wanted
    missing = Adapter({"model.layers.9.mlp.up_proj": change}, 1.0, fingerprint(model), "")
    with pytest.raises(ModelError, match="it has no layer"), missing.steer(model, 0):
        pass
