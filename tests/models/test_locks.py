"""Garbage may be collected while a lock of psr_lens is held: what then runs may use the model, and end blocks of its own."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import BACKENDS, save_tiny

import psr_lens as psr
from psr_lens.models import forward_pass, frozen
from psr_lens.models.forward_pass import weights_of_one_thread

LIMIT = 60


@pytest.fixture(params=BACKENDS)
def model(request, tmp_path) -> Any:
    found = psr.load_model(save_tiny("llama", tmp_path), backend=request.param, verify=False)
    found.train()
    found.requires_grad_(True)
    return found


def within(work: Callable[[], None]) -> None:
    """Run something in a thread, and fail where it never ends."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 (it is raised again)
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), "it waits for itself"
    if errors:
        raise errors[0]


class Ring:
    """Garbage that only a collection finds."""

    def __init__(self) -> None:
        self.itself = self


def is_free(model: Any) -> bool:
    return model.training and all(each.requires_grad for each in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("block", [frozen, weights_of_one_thread])
def test_a_finaliser_that_runs_while_the_lock_is_held_may_use_the_model(model, block, monkeypatch):
    called = []

    def finaliser() -> None:
        for each in (frozen, weights_of_one_thread):
            with each(model):
                called.append(each)

    collect = forward_pass.all_modules

    def collecting(model: Any) -> Any:
        found = collect(model)
        gc.collect()
        return found

    def work() -> None:
        ring = Ring()
        weakref.finalize(ring, finaliser)
        del ring
        with forward_pass._lock:
            gc.collect()
        assert called == [frozen, weights_of_one_thread]
        ring = Ring()
        weakref.finalize(ring, finaliser)
        del ring
        monkeypatch.setattr(forward_pass, "all_modules", collecting)
        with block(model), frozen(model):
            assert not model.training
            assert not any(each.requires_grad for each in model.parameters())
        assert len(called) == 4
        assert is_free(model)

    within(work)


@pytest.mark.slow
def test_a_generator_that_is_collected_ends_its_block_wherever_that_happens(model, monkeypatch):
    def reading(cycle: list[Any]) -> Iterator[None]:
        with frozen(model), weights_of_one_thread(model):
            yield

    def abandoned() -> None:
        cycle: list[Any] = []
        generator = reading(cycle)
        cycle.append(generator)  # so that only a collection ends it
        next(generator)

    def work() -> None:
        gc.disable()
        try:
            abandoned()
            assert not is_free(model)
            with forward_pass._lock:
                gc.collect()
            assert is_free(model)
            abandoned()
            counter = forward_pass.Counter

            class Collecting(counter):  # type: ignore[valid-type, misc]
                def __getitem__(self, key: int) -> int:
                    gc.collect()
                    return int(super().__getitem__(key))

            for name in ("frozen", "changing"):
                blocks = forward_pass._blocks[model]
                setattr(blocks, name, Collecting(getattr(blocks, name)))
            with frozen(model):
                assert not model.training
                assert not any(each.requires_grad for each in model.parameters())
            assert is_free(model)
        finally:
            gc.enable()

    within(work)
    with ThreadPoolExecutor(1) as pool:  # no thread holds the weights any more
        pool.submit(lambda: weights_of_one_thread(model).__enter__()).result()


def test_gradients_and_modes_of_single_modules_come_back_as_they_were(model):
    first, second, *_ = model.parameters()
    second.requires_grad_(False)
    inner = next(each for each in model.modules() if isinstance(each, torch.nn.Module) and each is not model)
    inner.eval()
    with frozen(model), frozen(model):
        assert not first.requires_grad
    assert first.requires_grad
    assert not second.requires_grad
    assert model.training
    assert not inner.training
