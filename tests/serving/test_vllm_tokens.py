"""Tokens of vLLM with the plugin against those of plain transformers with `attach`."""

import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own")

from vllm import SamplingParams
from vllm_models import CONTEXT, SERVED, with_drafts

ROUNDS = 20


def ask(ids, asked=None, count=8, **settings):
    """One greedy request without end tokens, as vLLM takes it."""
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, extra_args=asked, **settings)
    return {"prompt_token_ids": ids}, params


def tokens(llm, requests):
    found = llm.generate(*map(list, zip(*requests, strict=True)), use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in found]


@pytest.mark.parametrize("family", SERVED)
def test_mixed_batches_are_as_attach_alone(family, tiny_for_vllm, engine):
    """Requests of any strength, replacement, span and length share batches, chunks and the prefix cache."""
    tiny, rng = tiny_for_vllm(family), random.Random(family)
    vocabulary = tiny.hf.config.get_text_config().vocab_size
    prefixes = [[rng.randrange(5, vocabulary) for _ in range(length)] for length in (33, 66)]
    chunk = 33 + 3 * list(SERVED).index(family)
    steered = cached = 0
    batches = []  # with their answers before vLLM starts, which changes transformers' own classes where it has no code of its own
    for _ in range(ROUNDS):
        requests, expected = [], []
        for _ in range(rng.randint(2, 8)):
            ids = [*rng.choice([[], *prefixes]), *(rng.randrange(5, vocabulary) for _ in range(rng.randint(3, 18)))]
            name, alpha = rng.choice([None, *tiny.steering]), rng.choice([0, 0.5, 1.0, -1.0, 2.0])
            count = rng.randint(1, 10)
            start = rng.randrange(len(ids)) if name not in (None, "plan") and rng.random() < 0.4 else None
            asked = None if name is None else {"psr": name, "psr_alpha": alpha}
            if start is not None:
                asked[f"psr_start_{tiny.steering[name].span}"] = start
            requests.append(ask(ids, asked, count))
            expected.append(tiny.greedy(ids, name, alpha, count, start))
            steered += name is not None and expected[-1] != tiny.greedy(ids, None, 0, count)
        batches.append((requests, expected))
    with engine(tiny, max_num_batched_tokens=chunk) as llm:
        for requests, expected in batches:
            found = llm.generate(*map(list, zip(*requests, strict=True)), use_tqdm=False)
            cached += sum(each.num_cached_tokens > 0 for each in found)
            assert [list(each.outputs[0].token_ids) for each in found] == expected
    assert steered > ROUNDS  # otherwise the test would say little
    assert cached > ROUNDS
    assert max(map(len, prefixes)) > chunk - 33
    assert CONTEXT > 66 + 18 + 10


def test_one_that_runs_out_of_memory_goes_on_as_it_was_steered(tiny_for_vllm, engine, monkeypatch):
    from vllm.v1.core.sched.scheduler import Scheduler

    tiny, rng, preempted = tiny_for_vllm("llama"), random.Random(1), []
    original = Scheduler._preempt_request
    monkeypatch.setattr(Scheduler, "_preempt_request", lambda *given, **named: (preempted.append(1), original(*given, **named))[1])
    with engine(tiny, num_gpu_blocks_override=8) as llm:
        prompts = [[rng.randrange(5, 300) for _ in range(20)] for _ in range(6)]
        asked = [{"psr": name, "psr_alpha": 1.0} for name in ("post", "rules", "last", "plan", "post", "mlp")]
        found = tokens(llm, [ask(ids, each, 60) for ids, each in zip(prompts, asked, strict=True)])
    assert found == [tiny.greedy(ids, each["psr"], 1.0, 60) for ids, each in zip(prompts, asked, strict=True)]
    assert preempted


def test_the_prefix_cache_keeps_what_is_steered_apart(llama, monkeypatch):
    tiny, llm = llama
    rng = random.Random(3)
    asked = {"psr": "post", "psr_alpha": 1.0, "psr_start_R": 0}

    def leaks(ids):
        """Whether a request is answered with blocks of one that was steered otherwise."""
        wanted = {alpha: tiny.greedy(ids, "post", alpha, 8, start=0) for alpha in (1.0, 0.5)}
        plain = tiny.greedy(ids, None, 0, 8)
        found = [
            tokens(llm, [ask(ids, each)])[0]
            for each in (asked, None, asked | {"psr_alpha": 0.5}, asked, {"psr": "post", "psr_alpha": 0, "psr_start_R": 0})
        ]
        return found != [wanted[1.0], plain, wanted[0.5], wanted[1.0], plain]

    assert not any(leaks([rng.randrange(5, 300) for _ in range(70)]) for _ in range(5))
    monkeypatch.setattr("psr_lens.serving.places.cache_key", lambda steering, end: None)
    assert any(leaks([rng.randrange(5, 300) for _ in range(70)]) for _ in range(5))


def test_what_lies_before_the_steered_tokens_is_shared(llama):
    _, llm = llama
    rng = random.Random(4)
    ids = [rng.randrange(5, 300) for _ in range(70)]
    cached = []
    for asked in (None, {"psr": "post"}, {"psr": "post", "psr_alpha": -1}, {"psr": "post", "psr_start_R": 40}):
        prompt, params = ask(ids, asked)
        cached.append(llm.generate([prompt], params, use_tqdm=False)[0].num_cached_tokens)
    assert cached == [0, 64, 64, 32]


def test_a_response_that_becomes_a_prompt_is_read_anew(llama):
    """In the next turn, the steered response is part of an unsteered prompt."""
    tiny, llm = llama
    ids = [random.Random(5).randrange(5, 300) for _ in range(34)]
    (first,) = tokens(llm, [ask(ids, {"psr": "post"}, 40)])
    assert first == tiny.greedy(ids, "post", 1.0, 40)
    for asked in (None, {"psr": "post"}):
        (second,) = tokens(llm, [ask(ids + first, asked, 8)])
        assert second == tiny.greedy(ids + first, asked and "post", 1.0, 8)


def test_every_answer_to_a_prompt_is_steered(llama):
    tiny, llm = llama
    ids = [random.Random(6).randrange(5, 300) for _ in range(9)]
    several = SamplingParams(n=3, temperature=1.0, top_k=1, max_tokens=8, ignore_eos=True, extra_args={"psr": "post"})
    (found,) = llm.generate([{"prompt_token_ids": ids}], several, use_tqdm=False)
    assert [list(each.token_ids) for each in found.outputs] == [tiny.greedy(ids, "post", 1.0, 8)] * 3


def test_any_of_several_end_tokens_ends_a_response(llama):
    tiny, llm = llama
    ids = [random.Random(7).randrange(5, 300) for _ in range(9)]
    full = tiny.greedy(ids, "post", 1.0, 12)
    prompt, params = ask(ids, {"psr": "post"}, 12, stop_token_ids=[full[5], full[9]])
    (found,) = llm.generate([prompt], params, use_tqdm=False)
    assert list(found.outputs[0].token_ids) == full[: 1 + min(full.index(full[5]), full.index(full[9]))]


def test_without_strength_it_is_vllm_without_the_plugin(llama, tiny_for_vllm, engine):
    tiny, llm = llama
    rng = random.Random(8)
    prompts = [[rng.randrange(5, 300) for _ in range(rng.randint(3, 60))] for _ in range(8)]

    def answers(llm, asked):
        found = llm.generate(*map(list, zip(*[ask(ids, asked, logprobs=3) for ids in prompts], strict=True)), use_tqdm=False)
        return [[{token: each.logprob for token, each in step.items()} for step in one.outputs[0].logprobs] for one in found]

    steered = [
        answers(llm, asked) for asked in (None, {"psr": "post", "psr_alpha": 0.0}, {"psr": ["last", "heads"], "psr_alpha": 0})
    ]
    with engine(tiny, additional_config={}) as plain:
        expected = answers(plain, None)
        with pytest.raises(ValueError, match="this engine serves none"):
            answers(plain, {"psr": "post"})
    assert steered == [expected] * 3  # to the last bit


def test_drafts_are_accepted_as_they_would_have_been_sampled(tiny_for_vllm):
    tiny, rng = tiny_for_vllm("llama"), random.Random(2)
    prompts = [[rng.randrange(5, 20) for _ in range(20)] for _ in range(6)]  # of few tokens, so that drafts are made
    names = ("post", "rules", "last", "plan", "attention", "mlp")
    with ProcessPoolExecutor(1, get_context("spawn")) as another:
        found, accepted = another.submit(with_drafts, str(tiny.folder), tiny.saved, prompts, names, 30).result()
    assert found == [tiny.greedy(ids, name, 1.0, 30) for ids, name in zip(prompts, names, strict=True)]
    assert accepted > 0
