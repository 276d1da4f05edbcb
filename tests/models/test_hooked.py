"""Hooks that are added for a block behave as those of `model.hooks`, in both classes."""

import pytest
import torch
from helpers import BACKENDS, LAYERS, logits_of

from psr_lens.errors import InputError
from psr_lens.models import TemporaryHooks, has_hooked_transformer, hooked, is_bridge, is_switched_off

PROMPT = range(10, 20)
NAMES = ["hook_embed", *(f"blocks.{layer}.{point}" for layer in range(LAYERS) for point in ("attn.hook_z", "hook_resid_post"))]


FAMILIES = ("llama", "gpt2", "gpt-neox", "gemma2")
"""Several, since aliases differ: joint projections, parallel blocks, norms behind the attention."""


@pytest.fixture(params=BACKENDS)
def model(load, request):
    return load("llama", request.param).model


def noting(seen, label=""):
    return [(name, lambda activation, hook, name=name: seen.append(f"{label}{name}")) for name in NAMES]


def doubled(activation, hook):
    return 2 * activation


def test_hooks_fire_in_the_models_order_and_are_gone_afterwards(model):
    seen, wanted = [], []
    with model.hooks(fwd_hooks=noting(wanted)):
        logits_of(model, PROMPT)
    with hooked(model, noting(seen)):
        logits_of(model, PROMPT)
    assert seen == wanted == NAMES
    logits_of(model, PROMPT)
    assert len(seen) == len(NAMES)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_what_a_hook_returns_goes_on_as_with_the_models_own(model):
    name = "blocks.1.hook_resid_post"
    with model.hooks(fwd_hooks=[(name, doubled)]):
        wanted = logits_of(model, PROMPT)
    with hooked(model, [(name, doubled)]):
        assert torch.equal(logits_of(model, PROMPT), wanted)
    assert not torch.equal(logits_of(model, PROMPT), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_a_bridge_leads_to_its_own_point(load, family):
    model = load(family, "bridge").model
    for name, point in model.hook_dict.items():
        if is_switched_off(model, name):
            with pytest.raises((AssertionError, ValueError)), hooked(model, [(name, doubled)]):
                pass
            continue
        with hooked(model, TemporaryHooks([(name, doubled)])):
            found = [handle.user_hook for handle in point.fwd_hooks]
        assert found == [doubled], name
        assert not point.fwd_hooks


def test_blocks_nest_and_each_takes_off_its_own_even_where_it_fails(model):
    seen = []
    with model.hooks(fwd_hooks=noting(seen, "outer ")):
        with pytest.raises(KeyError), hooked(model, noting(seen, "inner ")):
            raise KeyError
        logits_of(model, PROMPT)
    assert seen == [f"outer {name}" for name in NAMES]
    seen.clear()
    with hooked(model, noting(seen, "outer ")):
        with hooked(model, noting(seen, "inner ")):
            pass
        logits_of(model, PROMPT)
        model.run_with_hooks(torch.tensor([list(PROMPT)]), fwd_hooks=noting([]))
        logits_of(model, PROMPT)
    assert seen == 3 * [f"outer {name}" for name in NAMES]
    assert model.context_level == 0


def test_blocks_may_end_in_the_order_in_which_they_began(model):
    seen = []
    first, second = hooked(model, noting(seen, "first ")), hooked(model, noting(seen, "second "))
    for block in (first, second):
        block.__enter__()
    first.__exit__(None, None, None)
    with hooked(model, noting([])):
        pass
    logits_of(model, PROMPT)
    second.__exit__(None, None, None)
    logits_of(model, PROMPT)
    if is_bridge(model):
        assert seen == [f"second {name}" for name in NAMES]
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert model.context_level == 0


def test_a_name_that_is_none_leaves_no_hook_behind(model):
    hooks = [("blocks.0.hook_resid_post", doubled), ("blocks.0.hook_nothing", doubled)]
    refused = InputError if is_bridge(model) and has_hooked_transformer() else KeyError
    with pytest.raises(refused), hooked(model, hooks):
        pass
    assert not model.hook_dict["blocks.0.hook_resid_post"].fwd_hooks
