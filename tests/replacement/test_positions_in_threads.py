"""What is steered where several threads call one model."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers import BACKENDS, hook_count, logits_of, pairs_of, random_replacement
from micro_models import micro_model, micro_replacement

import psr_lens as psr
from psr_lens.errors import InputError

TEXT = list(range(20, 40))
GREEDY = psr.SamplingConfig(temperature=0, max_new_tokens=5)


@pytest.fixture(params=BACKENDS)
def case(request, load) -> Any:
    """One tiny architecture in each of TransformerLens's classes."""
    return load("llama-gqa", request.param)


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """Results of several threads that begin at once."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> Any:
        barrier.wait()
        return [work(number) for _ in range(3)]

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def test_six_threads_on_one_attached_model_get_what_one_gets():
    model, made = micro_model("Llama"), micro_replacement()
    prompts = [torch.tensor([TEXT[: 3 + 2 * number]]) for number in range(6)]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with made.attach(model):
        wanted = [model.generate(each, **options).tolist() for each in prompts]
        found = in_threads(lambda number: model.generate(prompts[number], **options).tolist(), 6)
    assert found == [[each] * 3 for each in wanted]


def test_steered_and_unsteered_generation_in_threads_are_what_they_are_alone(case):
    pairs, replacement = pairs_of(case.model, 2), random_replacement(case.model, size=0.3)

    def answer(number: int) -> Any:
        return psr.generate(case.model, pairs, replacement if number % 2 else None, sampling=GREEDY)

    wanted = [answer(0), answer(1)]
    assert wanted[0] != wanted[1]
    before = hook_count(case.model)
    found = in_threads(answer, 4)
    assert found == [[wanted[number % 2]] * 3 for number in range(4)]
    assert hook_count(case.model) == before


def test_a_steer_block_refuses_calls_of_threads_without_one_and_leaves_those_with_one_alone(case):
    outer, inner = random_replacement(case.model, size=0.3), random_replacement(case.model, size=0.3, seed=1)
    with inner.steer(case.model):
        wanted = logits_of(case.model, TEXT[:6])

    def in_a_block() -> torch.Tensor:
        with inner.steer(case.model):
            return logits_of(case.model, TEXT[:6])

    with outer.steer(case.model), ThreadPoolExecutor(1) as pool:
        with pytest.raises(InputError, match=r"another thread.*Open a block in each thread, or use `attach`"):
            pool.submit(logits_of, case.model, TEXT[:6]).result()
        assert torch.equal(pool.submit(in_a_block).result(), wanted)
