"""Forward passes that wait for each other at every hook point."""

import threading

import pytest
import torch
from helpers import LAYERS, assert_unchanged, random_triplets, state_of

from psr_lens.activations.batches import context_batch
from psr_lens.errors import FitError
from psr_lens.fitting.layerwise.lockstep import lockstep
from psr_lens.models import forward

NAMES = [f"blocks.{layer}.hook_resid_post" for layer in range(LAYERS)]


def batches_of(model, count: int = 3):
    triplets = random_triplets(model, 2 * count)
    return [context_batch(triplets[2 * place : 2 * place + 2], "base", "R") for place in range(count)]


def plain_passes(model, batches, edit=lambda name, activation: activation) -> dict[str, list[torch.Tensor]]:
    """What ordinary passes, one after the other, see at each hook point when every activation is edited."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in NAMES}

    def hook_of(name):
        def hook(activation, hook):
            seen[name].append(activation.clone())
            return edit(name, activation)

        return hook

    for batch in batches:
        with torch.no_grad(), model.hooks(fwd_hooks=[(name, hook_of(name)) for name in NAMES]):
            forward(model, batch.tokens, batch.mask)
    return seen


def test_every_pass_is_seen_at_every_hook_point_in_order(tiny):
    batches, visited = batches_of(tiny.model), {}

    def visit(name, arrived):
        visited[name] = [activation.clone() for activation in arrived]
        return arrived

    lockstep(tiny.model, batches, NAMES, LAYERS, visit)
    assert list(visited) == NAMES
    wanted = plain_passes(tiny.model, batches)
    for name in NAMES:
        for found, activation in zip(visited[name], wanted[name], strict=True):
            assert torch.equal(found, activation)


def test_what_a_visit_returns_is_what_the_passes_go_on_with(tiny):
    def edit(name, activation):
        return 0.5 * activation + 1.0

    batches, visited = batches_of(tiny.model), {}

    def visit(name, arrived):
        visited[name] = [activation.clone() for activation in arrived]
        return [edit(name, activation) for activation in arrived]

    lockstep(tiny.model, batches, NAMES, LAYERS, visit)
    wanted = plain_passes(tiny.model, batches, edit)
    for name in NAMES:
        for found, activation in zip(visited[name], wanted[name], strict=True):
            assert torch.equal(found, activation)


def test_layers_that_are_not_asked_for_are_not_run(tiny):
    calls = []
    last = (f"blocks.{LAYERS - 1}.hook_resid_post", lambda activation, hook: calls.append(1))
    with tiny.model.hooks(fwd_hooks=[last]):
        lockstep(tiny.model, batches_of(tiny.model), NAMES[:1], 1, lambda name, arrived: arrived)
    assert not calls


def test_no_thread_and_no_hook_is_left_behind(tiny):
    threads, before = set(threading.enumerate()), state_of(tiny.model)
    lockstep(tiny.model, batches_of(tiny.model), NAMES, LAYERS, lambda name, arrived: arrived)
    assert set(threading.enumerate()) == threads
    assert_unchanged(tiny.model, before)


@pytest.mark.parametrize("error", [ZeroDivisionError("in the visit"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("at", range(LAYERS))
def test_an_error_in_a_visit_comes_through_and_leaves_nothing_behind(tiny, error, at):
    threads, before = set(threading.enumerate()), state_of(tiny.model)

    def visit(name, arrived):
        if name == NAMES[at]:
            raise error
        return arrived

    with pytest.raises(type(error)) as caught:
        lockstep(tiny.model, batches_of(tiny.model), NAMES, LAYERS, visit)
    assert caught.value is error
    assert set(threading.enumerate()) == threads
    assert_unchanged(tiny.model, before)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_within_a_pass_comes_through_and_leaves_nothing_behind(tiny, failing):
    threads, before, calls = set(threading.enumerate()), state_of(tiny.model), []

    def fail(activation, hook):
        calls.append(1)
        if len(calls) == failing + 1:
            raise KeyError("in a pass")

    with tiny.model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", fail)]), pytest.raises(KeyError, match="in a pass"):
        lockstep(tiny.model, batches_of(tiny.model), NAMES, LAYERS, lambda name, arrived: arrived)
    assert set(threading.enumerate()) == threads
    assert_unchanged(tiny.model, before)


@pytest.mark.parametrize(
    ("names", "stop", "named"),
    [([NAMES[1], NAMES[0]], LAYERS, NAMES[1]), ([NAMES[0], "blocks.1.attn.hook_z"], 1, "blocks.1.attn.hook_z")],
    ids=["wrong order", "never fires"],
)
def test_a_hook_point_that_does_not_fire_in_turn_is_a_fit_error_that_names_it(tiny, names, stop, named):
    threads, before = set(threading.enumerate()), state_of(tiny.model)
    with pytest.raises(FitError, match=named.replace(".", r"\.")):
        lockstep(tiny.model, batches_of(tiny.model), names, stop, lambda name, arrived: arrived)
    assert set(threading.enumerate()) == threads
    assert_unchanged(tiny.model, before)


def test_passes_keep_no_gradients(fresh):
    fresh.model.requires_grad_(True)
    seen = []
    lockstep(fresh.model, batches_of(fresh.model), NAMES, LAYERS, lambda name, arrived: seen.extend(arrived) or arrived)
    assert not any(activation.requires_grad for activation in seen)
