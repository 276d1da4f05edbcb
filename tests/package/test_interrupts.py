"""An interrupt in the middle of a call leaves no hooks and an unchanged model, and the same call works afterwards."""

import threading

import pytest
from helpers import assert_unchanged, pairs_of, random_replacement, random_triplets, state_of
from transformer_lens.hook_points import HookPoint
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import psr_lens as psr
from psr_lens import patching

SHORT = psr.SamplingConfig(max_new_tokens=4)


def steer(model, triplets, folder):
    with (
        random_replacement(model).steer(model),
        (random_replacement(model, seed=1) + random_replacement(model, seed=2)).steer(model),
    ):
        psr.generate(model, pairs_of(model, 2), sampling=SHORT)


def generate(model, triplets, folder):
    psr.generate(model, pairs_of(model, 2), random_replacement(model), context="prompted", sampling=SHORT)


def capture(model, triplets, folder):
    psr.capture(model, triplets, "all")
    psr.capture(model, triplets, to=psr.Statistics(rank=1), difference="local")


def store(model, triplets, folder):
    psr.capture(model, triplets, to=psr.OnDisk(folder))


def compare(model, triplets, folder):
    psr.compare(model, triplets, {"A-PSR": random_replacement(model)}, paraphrase="speak as a pirate would .")


def faithfulness(model, triplets, folder):
    psr.faithfulness(model, triplets, {"A-PSR": random_replacement(model)})


def fit(config):
    def fitted(model, triplets, folder):
        psr.fit(model, triplets, config)

    return fitted


def attribute(model, triplets, folder):
    psr.attribute(model, triplets, by_source=True)


def knock_out(model, triplets, folder):
    with patching.knock_out(model, triplets, [(0, 0), (1, 1)]):
        psr.generate(model, [each.pair for each in triplets], context="prompted", sampling=SHORT)


def patch(model, triplets, folder):
    patching.patch(model, triplets[:1], "z")


def ablate(model, triplets, folder):
    patching.ablate(model, triplets[:1], random_replacement(model))


def transplant(model, triplets, folder):
    with patching.transplant(model, [each.pair for each in triplets]):
        psr.generate(model, [each.pair for each in triplets], sampling=SHORT)


def meaning(model, triplets, folder):
    psr.top_tokens(model, triplets, random_replacement(model))


CALLS = {
    "steer": steer,
    "generate": generate,
    "capture": capture,
    "store": store,
    "compare": compare,
    "faithfulness": faithfulness,
    "sequential": fit(psr.Sequential(rank=1)),
    "local": fit(psr.Local(rank=1)),
    "joint": fit(psr.Joint(epochs=1)),
    "dim": fit(psr.DiM()),
    "attribute": attribute,
    "knock_out": knock_out,
    "patch": patch,
    "ablate": ablate,
    "transplant": transplant,
    "top_tokens": meaning,
}


class Interrupted:
    """Counts the passes through a block in the middle of the model, and interrupts one of them."""

    def __init__(self, model, monkeypatch, *, samples=True):
        self.passes, self.at = 0, None
        # Classes are changed, not modules: a replaced `forward` of a module counts as a hook.
        monkeypatch.setattr(HookPoint, "forward", self._counted(HookPoint.forward, model.hook_dict["blocks.1.hook_resid_post"]))
        if samples:  # which runs on plain transformers
            monkeypatch.setattr(LlamaDecoderLayer, "forward", self._counted(LlamaDecoderLayer.forward, None))

    def _counted(self, forward, only):
        def counted(module, *args, **kwargs):
            if only is None or module is only:
                self.passes += 1
                if self.passes - 1 == self.at:
                    raise KeyboardInterrupt
            return forward(module, *args, **kwargs)

        return counted

    def during(self, at):
        """Interrupt the pass of this number, from 0; None for no interruption."""
        self.passes, self.at = 0, at


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_leaves_nothing_behind_and_the_same_call_works_afterwards(tiny_llama, name, monkeypatch, tmp_path):
    model, triplets, call = tiny_llama.model, random_triplets(tiny_llama.model, 3, longest=4), CALLS[name]
    generate(model, triplets, tmp_path)  # what is tried out once for each model is behind us
    # To a store, a layer that counts and interrupts at other numbers is a layer of another model.
    interrupt = Interrupted(model, monkeypatch, samples=name != "store")
    before = state_of(model)
    interrupt.during(None)
    call(model, triplets, tmp_path / "whole")
    passes, threads = interrupt.passes, set(threading.enumerate())  # tqdm keeps a monitor thread
    assert passes > 0
    for at in sorted({0, passes // 2, passes - 1}):
        interrupt.during(at)
        with pytest.raises(KeyboardInterrupt):
            call(model, triplets, tmp_path / "store")
        interrupt.during(None)
        assert_unchanged(model, before)
        assert set(threading.enumerate()) == threads
    interrupt.during(None)
    call(model, triplets, tmp_path / "store")
    assert interrupt.passes <= passes  # a store keeps finished shards
