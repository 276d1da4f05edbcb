"""Hooks of psr_lens that act in another thread alone are no hooks of others; those that act in this one, or in all, are."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import BACKENDS, logits_of, pairs_of, random_replacement

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.models import forward, has_hooks, hooked, plain_transformers, untold

POINT = "blocks.1.hook_resid_post"
GREEDY = psr.SamplingConfig(temperature=0, max_new_tokens=4)


@pytest.fixture(params=BACKENDS)
def model(load, request) -> Any:
    return load("llama", request.param).model


@contextmanager
def elsewhere(block: Callable[[], Any]) -> Iterator[None]:
    """A block that is open in another thread."""
    begun, ended = threading.Event(), threading.Event()

    def stay() -> None:
        with block():
            begun.set()
            assert ended.wait(60)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stay)
        try:
            assert begun.wait(60) or waiting.result()
            yield
        finally:
            ended.set()
        waiting.result()


def untouched(activation: torch.Tensor, hook: Any) -> None:
    return None


def test_hooks_of_another_thread_are_not_ones_of_others(model):
    replacement = random_replacement(model)
    for block in (
        lambda: hooked(model, [(POINT, untouched)]),
        lambda: hooked(model, replacement.hooks(model)),
        lambda: replacement.steer(model),
    ):
        with elsewhere(block):
            assert not has_hooks(model)
            assert untold(model) is None
        with block():
            assert has_hooks(model)
            assert untold(model).startswith("hooks on the model (a hook on blocks.")
    assert not has_hooks(model)


def test_hooks_of_a_person_and_attached_ones_act_in_all_threads(model):
    with elsewhere(lambda: model.hooks(fwd_hooks=[(POINT, untouched)])):
        assert has_hooks(model)
        assert untold(model) == f"hooks on the model (a hook on {model.hook_dict[POINT].name})"
    if hasattr(model, "original_model"):
        replacement = random_replacement(model)
        with replacement.attach(model.original_model):
            assert has_hooks(model)
        assert not has_hooks(model)
    hooks = random_replacement(model).hooks(model)
    assert not has_hooks(model)  # what watches the calls changes nothing
    with elsewhere(lambda: model.hooks(fwd_hooks=hooks)):
        assert has_hooks(model)
    hooks.close()


def test_while_another_thread_steers_answers_are_those_of_the_model_and_come_as_fast(model):
    pairs, replacement = pairs_of(model, 2), random_replacement(model, size=0.4)
    wanted = psr.generate(model, pairs, sampling=GREEDY)
    assert plain_transformers(model) is not None
    with elsewhere(lambda: hooked(model, replacement.hooks(model))):
        assert plain_transformers(model) is not None
        assert psr.generate(model, pairs, sampling=GREEDY) == wanted
    with (
        elsewhere(lambda: replacement.steer(model)),
        pytest.raises(InputError, match="a call of another thread while a `steer` block"),
    ):
        psr.generate(model, pairs, sampling=GREEDY)


def test_passes_that_stop_early_in_another_thread_leave_this_one_alone(model):
    tokens = torch.arange(10, 16)[None]
    wanted = logits_of(model, range(10, 16))
    inside, go_on = threading.Event(), threading.Event()

    def waiting(activation: torch.Tensor, hook: Any) -> None:
        inside.set()
        assert go_on.wait(60)

    def stop_early() -> torch.Tensor:
        with torch.no_grad(), hooked(model, [("blocks.0.hook_resid_post", waiting)]):
            return forward(model, tokens, torch.ones_like(tokens), 1)

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(stop_early)
        assert inside.wait(60)
        assert not has_hooks(model)
        assert torch.equal(logits_of(model, range(10, 16)), wanted)
        go_on.set()
        assert found.result().shape == (1, 6, model.cfg.d_model)
