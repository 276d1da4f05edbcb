"""What hooks that steer record of a call is gone when the next one begins."""

from typing import Any

import pytest
import torch
from helpers import BACKENDS, random_replacement, replacement_at

from psr_lens.models import forward, hooked

TOKENS = torch.arange(10, 15)[None]


@pytest.fixture(params=BACKENDS)
def model(load, request) -> Any:
    return load("llama-gqa", request.param).model


class BrokenError(Exception):
    pass


def breaking(activation: torch.Tensor, hook: Any) -> None:
    raise BrokenError


def test_what_was_recorded_never_outlives_its_call(model):
    replacement, recorded = random_replacement(model), {}
    hooks = replacement.hooks(model)
    hooks.record(recorded)
    first, *_ = names = [name for name, _ in hooks]
    with torch.no_grad(), hooked(model, hooks):
        model(TOKENS)
        assert list(recorded) == names
        wanted = {name: each.clone() for name, each in recorded.items()}
        forward(model, TOKENS, torch.ones_like(TOKENS), 1)  # which stops after the first layer
        assert list(recorded) == [first]
        torch.testing.assert_close(recorded[first], wanted[first])
        model(TOKENS)
        for name, left in (("blocks.0.hook_resid_pre", []), ("blocks.1.hook_resid_pre", [first])):
            with pytest.raises(BrokenError), hooked(model, [(name, breaking)]):
                model(TOKENS)
            assert list(recorded) == left
        model(TOKENS)
        torch.testing.assert_close(recorded, wanted)


def test_a_call_that_adds_nothing_has_recorded_nothing(model):
    recorded = {}
    hooks = replacement_at(model, "hook_resid_post", [1], tokens="last").hooks(model, start=2)
    hooks.record(recorded)
    with torch.no_grad(), hooked(model, hooks):
        model(TOKENS[:, :3])
        assert list(recorded) == ["blocks.1.hook_resid_post"]
        model(TOKENS)  # whose last token is behind the one that is steered
        assert recorded == {}


def test_another_threads_calls_leave_what_this_one_recorded(model):
    from concurrent.futures import ThreadPoolExecutor

    recorded = {}
    hooks = random_replacement(model).hooks(model)
    hooks.record(recorded)
    with torch.no_grad(), hooked(model, hooks), ThreadPoolExecutor(1) as pool:
        model(TOKENS)
        kept = dict(recorded)
        pool.submit(model, TOKENS).result()
        assert recorded == kept
