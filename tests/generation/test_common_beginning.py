"""What all prompts of a batch begin with is run once when they are sampled, and changes no response."""

import pytest
import torch
from helpers import BACKENDS, pairs_of, random_replacement, replacement_at

import psr_lens as psr
from psr_lens.generation.sampling import SamplingConfig, span_starts
from psr_lens.models import TransformersDecoder, kv_cache
from psr_lens.prompts import PromptPair

GREEDY = SamplingConfig(temperature=0, max_new_tokens=16)
SYSTEM = tuple(range(40, 60))
"""Token ids that every prompt begins with."""


def prompts_after(
    *ends: tuple[int, ...], system: tuple[int, ...] = SYSTEM, instruction: tuple[int, ...] = (7, 8)
) -> list[PromptPair]:
    """Prompts of different lengths after one system message; the question is all but the last token of an end."""
    return [PromptPair("q", "i", (*system, *end), (*system, *instruction, *end), len(end)) for end in ends]


ENDS = ((11, 12, 13), (21,), (31, 32, 33, 34, 35, 36, 37), (41, 42))


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the new tokens of every step on plain transformers."""
    found: list[tuple[int, int]] = []
    real = TransformersDecoder.step

    def step(decoder, new, mask):
        found.append(tuple(new.shape))
        return real(decoder, new, mask)

    monkeypatch.setattr(TransformersDecoder, "step", step)
    return found


def responses(model, pairs, *args, **kwargs) -> list[tuple[int, ...]]:
    return [each.ids for each in psr.generate(model, pairs, *args, **kwargs)]


def one_by_one(model, pairs, *args, **kwargs) -> list[tuple[int, ...]]:
    return [responses(model, [pair], *args, **kwargs)[0] for pair in pairs]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["organism", "organism-gpt2"])
@pytest.mark.parametrize("context", ["base", "prompted"])
def test_it_is_run_once_and_every_response_is_what_its_prompt_gets_alone(load, family, backend, context, calls):
    model, pairs = load(family, backend).model, prompts_after(*ENDS)
    together = responses(model, pairs, context=context, sampling=GREEDY)
    widest = max(len(pair.ids(context)) for pair in pairs)
    # The second longest prompt is the first to leave what the longest has in those columns.
    shared = widest - sorted(map(len, ENDS))[-2]
    assert calls[:2] == [(1, shared), (len(pairs), widest - shared)]
    assert together == one_by_one(model, pairs, context=context, sampling=GREEDY)
    assert len(set(together)) > 1


@pytest.mark.parametrize(("span", "tokens"), [("R", "span"), ("QR", "span"), ("R", "last")])
def test_a_steered_response_is_the_same_and_no_steered_token_is_run_before(load, span, tokens, calls):
    model, pairs = load("organism", BACKENDS[0]).model, prompts_after(*ENDS)
    steering = replacement_at(model, "hook_resid_post", [1, 3], size=0.5, span=span, tokens=tokens)
    strengths = [0.5, 1.0, 1.5, 2.0]
    together = responses(model, pairs, steering, alpha=strengths, sampling=GREEDY)
    width = max(len(pair.base_ids) for pair in pairs)
    starts = span_starts(pairs, range(len(pairs)), width)
    assert calls[0] == (1, len(SYSTEM))
    assert calls[0][1] <= int(starts[span].min())
    for pair, alpha, found in zip(pairs, strengths, together, strict=True):
        assert responses(model, [pair], steering, alpha=alpha, sampling=GREEDY) == [found]
    assert together != responses(model, pairs, sampling=GREEDY)


def test_nothing_is_run_before_where_the_first_token_is_steered(load, calls):
    model = load("organism", BACKENDS[0]).model
    pairs = [PromptPair("q", "i", pair.base_ids, pair.base_ids, len(pair.base_ids)) for pair in prompts_after(*ENDS)]
    steering = random_replacement(model, size=1.0)
    together = responses(model, pairs, steering, sampling=GREEDY)
    assert calls[0] == (len(pairs), max(len(pair.base_ids) for pair in pairs))
    assert together == one_by_one(model, pairs, steering, sampling=GREEDY)


def test_random_responses_are_those_without_it(load, calls, monkeypatch):
    model, pairs = load("organism", BACKENDS[0]).model, prompts_after(*ENDS, *ENDS)
    config = SamplingConfig(max_new_tokens=12, seed=4)
    shared = responses(model, pairs, sampling=config)
    assert calls[0][0] == 1
    calls.clear()
    monkeypatch.setattr(kv_cache, "LEAST_COLUMNS", 1_000)
    assert responses(model, pairs, sampling=config) == shared
    assert calls[0][0] == len(pairs)


def test_prompts_that_are_all_alike_keep_their_last_token_for_the_batch(load, calls):
    model, pairs = load("organism", BACKENDS[0]).model, prompts_after((11, 12), (11, 12), (11, 12))
    together = responses(model, pairs, sampling=GREEDY)
    assert calls[:2] == [(1, len(SYSTEM) + 1), (3, 1)]
    assert together == one_by_one(model, pairs, sampling=GREEDY)


def test_an_adapter_is_in_force_in_it_too(load, calls):
    model, pairs = load("organism", BACKENDS[-1]).model, prompts_after(*ENDS)
    triplets = psr.sample_responses(model, pairs_of(model, 6), None, sampling=SamplingConfig(max_new_tokens=8))
    adapter = psr.adapt(model, triplets, psr.LoRA(epochs=1, learning_rate=0.02))
    calls.clear()
    together = responses(model, pairs, adapter, alpha=3.0, sampling=GREEDY)
    assert calls[0] == (1, len(SYSTEM) + 4)
    assert together == one_by_one(model, pairs, adapter, alpha=3.0, sampling=GREEDY)
    assert together != responses(model, pairs, sampling=GREEDY)


def test_a_hook_of_the_users_sees_whole_batches(load, calls):
    model, pairs, seen = load("organism", BACKENDS[-1]).model, prompts_after(*ENDS), []
    wanted = responses(model, pairs, sampling=GREEDY)
    calls.clear()
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda activation, hook: seen.append(activation.shape[:2]))]):
        assert responses(model, pairs, sampling=GREEDY) == wanted
    assert calls == []
    assert seen[0] == torch.Size([len(pairs), max(len(pair.base_ids) for pair in pairs)])


def test_it_changes_no_response_on_any_architecture(tiny):
    pairs = prompts_after(*ENDS)
    assert responses(tiny.model, pairs, sampling=GREEDY) == one_by_one(tiny.model, pairs, sampling=GREEDY)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_positions_of_all_prompts_are_unembedded_in_one_matrix_product(load, backend, calls, monkeypatch):
    """Of a slice torch makes one for each prompt, and in half precision copies the weights for each."""
    model, pairs = load("organism", backend).model, prompts_after(*ENDS)
    given, real = [], torch.nn.functional.linear

    def linear(activation, weight, bias=None):
        if weight.shape[0] == model.cfg.d_vocab:
            given.append(activation)
        return real(activation, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    responses(model, pairs, sampling=GREEDY)
    together = [each for each in given if each.shape[0] == len(pairs)]
    assert calls[1][1] > 1  # several positions of each prompt are run, of which one is unembedded
    assert together
    assert all(each.is_contiguous() and each.shape[1] == 1 for each in together)
