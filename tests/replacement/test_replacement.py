"""Steering against equations 7 and 8 written out by hand, at every decode step."""

from contextlib import ExitStack
from dataclasses import replace

import oracles
import pytest
import torch
from helpers import (
    BACKENDS,
    LAYERS,
    WIDTH,
    assert_unchanged,
    generated,
    hook_count,
    logits_of,
    pairs_of,
    random_replacement,
    random_triplets,
    state_of,
)

import psr_lens as psr
from psr_lens.activations.batches import context_batch
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.replacement import Site

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}
STEPS = 8
GREEDY = SamplingConfig(temperature=0, max_new_tokens=STEPS)


@pytest.fixture
def prompt(tiny) -> tuple[int, ...]:
    return pairs_of(tiny.model, 1)[0].base_ids


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("alpha", [1.0, -0.6, 2.5])
def test_a_forward_pass_is_steered_from_the_last_prompt_token_by_the_formula(tiny, prompt, rank, alpha):
    replacement = random_replacement(tiny.model, rank=rank, size=0.3)
    with replacement.steer(tiny.model, alpha):
        steered = logits_of(tiny.model, prompt)
    plain = logits_of(tiny.model, prompt)
    torch.testing.assert_close(
        steered, oracles.steered_logits(tiny.hf, prompt, replacement.sites, alpha, len(prompt) - 1), **TOLERANCE
    )
    assert torch.equal(steered[:-1], plain[:-1])
    assert (steered[-1] - plain[-1]).abs().max() > 0.1


def test_the_constant_rule_adds_the_same_vector_everywhere(tiny, prompt):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, WIDTH, generator=generator)
    site = Site(z, torch.randn(1, WIDTH, generator=generator), torch.tensor([-0.5]), "constant")
    replacement = replace(random_replacement(tiny.model), sites={"blocks.1.hook_resid_post": site})
    with replacement.steer(tiny.model, 2.0, start=3):
        steered = logits_of(tiny.model, prompt)

    def add(activation):
        return torch.cat([activation[:3], activation[3:] + 2.0 * -0.5 * z[0]])

    with torch.no_grad():
        wanted = oracles.read(tiny.hf, prompt, {1: add}).logits
    torch.testing.assert_close(steered, wanted, **TOLERANCE)


@pytest.mark.parametrize("start", [0, 2, 5])
def test_the_start_may_be_an_int_or_a_tensor(tiny, prompt, start):
    replacement = random_replacement(tiny.model, size=0.3)
    wanted = oracles.steered_logits(tiny.hf, prompt, replacement.sites, 1.0, start)
    for given in (start, torch.tensor([start])):
        with replacement.steer(tiny.model, start=given):
            torch.testing.assert_close(logits_of(tiny.model, prompt), wanted, **TOLERANCE)


def test_run_with_cache_shows_the_steered_activations(tiny, prompt):
    replacement = random_replacement(tiny.model, layers=[0, 1], size=0.3)
    with replacement.steer(tiny.model, 0.8), torch.no_grad():
        logits, cache = tiny.model.run_with_cache(torch.tensor([prompt]))
    with torch.no_grad():
        wanted = oracles.read(tiny.hf, prompt, oracles.layer_edits(replacement.sites, 0.8, len(prompt) - 1))
    torch.testing.assert_close(logits[0], wanted.logits, **TOLERANCE)
    for layer in range(LAYERS):
        torch.testing.assert_close(cache[f"blocks.{layer}.hook_resid_post"][0], wanted.residuals[layer], **TOLERANCE)


def test_the_hooks_alone_steer_as_the_block_does(tiny, prompt):
    replacement = random_replacement(tiny.model)
    with replacement.steer(tiny.model, 0.8):
        wanted = logits_of(tiny.model, prompt)
    with torch.no_grad():
        found = tiny.model.run_with_hooks(torch.tensor([prompt]), fwd_hooks=replacement.hooks(tiny.model, 0.8))[0]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_generate_steers_the_last_prompt_token_and_every_decode_step(tiny, prompt, cached):
    replacement = random_replacement(tiny.model, size=0.3)
    edits = oracles.layer_edits(replacement.sites, 1.3, len(prompt) - 1)
    with replacement.steer(tiny.model, 1.3):
        steered = generated(tiny.model, prompt, STEPS, cached=cached)
    assert steered == oracles.greedy(tiny.hf, prompt, STEPS, edits)
    assert steered != oracles.greedy(tiny.hf, prompt, STEPS)
    only_the_prompt = [oracles.greedy(tiny.hf, prompt, 1, edits)[0]]
    assert steered != only_the_prompt + oracles.greedy(tiny.hf, [*prompt, *only_the_prompt], STEPS - 1)


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_each_generation_within_one_block_is_steered_from_its_own_prompt(tiny, cached):
    replacement = random_replacement(tiny.model, size=0.3)
    prompts = [pair.base_ids for pair in pairs_of(tiny.model, 3)]
    with replacement.steer(tiny.model):
        found = [generated(tiny.model, each, STEPS, cached=cached) for each in (*prompts, prompts[0])]
    wanted = [oracles.greedy(tiny.hf, each, STEPS, oracles.layer_edits(replacement.sites, 1.0, len(each) - 1)) for each in prompts]
    assert found == [*wanted, wanted[0]]


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_a_prompt_of_a_single_token_is_steered(tiny, cached):
    replacement = random_replacement(tiny.model, size=0.3)
    with replacement.steer(tiny.model):
        found = generated(tiny.model, [17], STEPS, cached=cached)
    assert found == oracles.greedy(tiny.hf, [17], STEPS, oracles.layer_edits(replacement.sites, 1.0, 0))


@pytest.mark.parametrize("cached", [True, False], ids=["with KV cache", "without KV cache"])
def test_a_batch_with_a_start_for_each_is_generated_as_each_alone(tiny, cached):
    prompts, starts = [list(range(20, 30)), list(range(40, 50)), list(range(60, 70))], [9, 4, 0]
    replacement = random_replacement(tiny.model, size=0.3)
    with replacement.steer(tiny.model, start=torch.tensor(starts)):
        output = tiny.model.generate(
            torch.tensor(prompts),
            max_new_tokens=STEPS,
            do_sample=False,
            stop_at_eos=False,
            use_past_kv_cache=cached,
            return_type="tokens",
            verbose=False,
        )
    for row, (each, start) in enumerate(zip(prompts, starts, strict=True)):
        edits = oracles.layer_edits(replacement.sites, 1.0, start)
        assert output[row, 10:].tolist() == oracles.greedy(tiny.hf, each, STEPS, edits)


@pytest.mark.parametrize("span", ["R", "QR"])
def test_our_own_batched_generation_is_steered_on_the_span_as_each_prompt_alone(tiny, span):
    replacement = random_replacement(tiny.model, span=span, size=0.3)
    pairs = pairs_of(tiny.model, 5)
    found = psr.generate(tiny.model, pairs, replacement, sampling=GREEDY, alpha=0.9)
    for pair, response in zip(pairs, found, strict=True):
        edits = oracles.layer_edits(replacement.sites, 0.9, len(pair.base_ids) - pair.span_length(span))
        wanted = oracles.greedy(tiny.hf, pair.base_ids, STEPS, edits)
        assert list(response.ids) == wanted[: len(response.ids)]
        assert len(response.ids) == STEPS or response.ids[-1] == 3


def test_batched_steering_of_padded_sequences_is_each_alone(tiny):
    triplets = random_triplets(tiny.model, 5)
    replacement = random_replacement(tiny.model, size=0.3)
    batch = context_batch(triplets, "base", "R")
    with replacement.steer(tiny.model, 1.1, start=batch.start), torch.no_grad():
        logits = tiny.model(batch.tokens, attention_mask=batch.mask)
    for row, triplet in enumerate(triplets):
        ids = (*triplet.pair.base_ids, *triplet.response_ids)
        wanted = oracles.steered_logits(tiny.hf, ids, replacement.sites, 1.1, len(triplet.pair.base_ids) - 1)
        torch.testing.assert_close(logits[row, : len(ids)], wanted, **TOLERANCE)


def test_alpha_may_differ_by_sequence(tiny):
    tokens, alphas = torch.tensor([range(20, 30), range(40, 50), range(60, 70)]), torch.tensor([0.5, 0.0, -1.5])
    replacement = random_replacement(tiny.model, rank=2, size=0.3)
    for start in (4, torch.tensor([4, 4, 4])):
        with replacement.steer(tiny.model, alphas, start=start), torch.no_grad():
            logits = tiny.model(tokens)
        for row, alpha in enumerate(alphas.tolist()):
            wanted = oracles.steered_logits(tiny.hf, tokens[row].tolist(), replacement.sites, alpha, 4)
            torch.testing.assert_close(logits[row], wanted, **TOLERANCE)


def test_under_qr_the_question_is_steered_too_from_where_it_was_in_training(tiny, prompt):
    replacement = replace(random_replacement(tiny.model, span="QR", size=0.3), question_start=2)
    with replacement.steer(tiny.model):
        steered = logits_of(tiny.model, prompt)
        tokens = generated(tiny.model, prompt, STEPS, cached=True)
    torch.testing.assert_close(steered, oracles.steered_logits(tiny.hf, prompt, replacement.sites, 1.0, 2), **TOLERANCE)
    assert tokens == oracles.greedy(tiny.hf, prompt, STEPS, oracles.layer_edits(replacement.sites, 1.0, 2))


@pytest.mark.parametrize("alpha", [0, 0.0, -0.0, torch.zeros(1)], ids=["0", "0.0", "-0.0", "tensor"])
def test_alpha_zero_is_bit_for_bit_no_steering(tiny, prompt, alpha):
    plain, tokens = logits_of(tiny.model, prompt), generated(tiny.model, prompt, STEPS, cached=True)
    with random_replacement(tiny.model).steer(tiny.model, alpha):
        assert torch.equal(logits_of(tiny.model, prompt), plain)
        assert generated(tiny.model, prompt, STEPS, cached=True) == tokens


def test_after_the_block_nothing_is_left_of_it(tiny, prompt):
    before = state_of(tiny.model)
    replacement = random_replacement(tiny.model)
    with replacement.steer(tiny.model) as model:
        assert model is tiny.model
        assert hook_count(tiny.model) > before.hooks
        generated(tiny.model, prompt, STEPS, cached=True)
    assert_unchanged(tiny.model, before)


def test_after_an_error_in_the_block_nothing_is_left_of_it_and_the_error_comes_through(tiny, prompt):
    before = state_of(tiny.model)

    def fail(activation, hook):
        raise KeyError("in a pass")

    def fail_in_the_block(error):
        with random_replacement(tiny.model).steer(tiny.model):
            logits_of(tiny.model, prompt)
            raise error

    for error in (ZeroDivisionError("in the block"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail_in_the_block(error)
    with pytest.raises(KeyError, match="in a pass"), random_replacement(tiny.model).steer(tiny.model):
        tiny.model.run_with_hooks(torch.tensor([prompt]), fwd_hooks=[("blocks.1.hook_mlp_out", fail)])
    assert_unchanged(tiny.model, before)


def test_a_users_own_hook_stays_and_works_beside_the_steering(fresh):
    calls = []
    fresh.model.add_hook("blocks.1.hook_resid_post", lambda activation, hook: calls.append(activation.shape))
    before = state_of(fresh.model)
    calls.clear()
    with random_replacement(fresh.model).steer(fresh.model):
        logits_of(fresh.model, range(10, 16))
        fresh.model.generate(torch.tensor([[10, 11]]), max_new_tokens=3, do_sample=False, stop_at_eos=False, verbose=False)
    assert calls[0] == (1, 6, WIDTH)
    assert len(calls) == 4
    assert_unchanged(fresh.model, before)
    assert before.hooks == 1


def test_nested_steering_of_two_replacements_applies_both(tiny, prompt):
    outer, inner = random_replacement(tiny.model, size=0.3, seed=1), random_replacement(tiny.model, layers=[1], size=0.3, seed=2)
    start = len(prompt) - 1
    edits = oracles.layer_edits(outer.sites, 1.0, start)
    first, second = edits[1], oracles.layer_edits(inner.sites, 0.5, start)[1]
    both = edits | {1: lambda activation: second(first(activation))}
    with outer.steer(tiny.model):
        with inner.steer(tiny.model, 0.5):
            nested = logits_of(tiny.model, prompt)
            tokens = generated(tiny.model, prompt, STEPS, cached=True)
        only_outer = logits_of(tiny.model, prompt)
    with torch.no_grad():
        torch.testing.assert_close(nested, oracles.read(tiny.hf, prompt, both).logits, **TOLERANCE)
    assert tokens == oracles.greedy(tiny.hf, prompt, STEPS, both)
    torch.testing.assert_close(only_outer, oracles.steered_logits(tiny.hf, prompt, outer.sites, 1.0, start), **TOLERANCE)


@pytest.mark.slow
def test_two_models_steered_at_once_by_one_replacement_share_no_state(folders, prompt, tiny):
    models = [psr.load_model(folders[tiny.family], backend=backend) for backend in (*BACKENDS, *BACKENDS)]
    replacement = random_replacement(tiny.model, size=0.3)
    alphas = [0.5, 1.0, -1.0, 0.0][: len(models)]
    with ExitStack() as stack:
        for model, alpha in zip(models, alphas, strict=True):
            stack.enter_context(replacement.steer(model, alpha))
        # Take turns: a prompt in each, of different lengths, then generation in each.
        for length in (len(prompt), len(prompt) - 3):
            for model, alpha in zip(models, alphas, strict=True):
                wanted = oracles.steered_logits(tiny.hf, prompt[:length], replacement.sites, alpha, length - 1)
                torch.testing.assert_close(logits_of(model, prompt[:length]), wanted, **TOLERANCE)
        for model, alpha in zip(models, alphas, strict=True):
            edits = oracles.layer_edits(replacement.sites, alpha, len(prompt) - 1)
            assert generated(model, prompt, STEPS, cached=True) == oracles.greedy(tiny.hf, prompt, STEPS, edits)


def test_a_longer_prompt_that_begins_like_the_one_before_is_a_new_prompt(tiny, prompt):
    replacement = random_replacement(tiny.model, size=0.3)
    with replacement.steer(tiny.model):
        for length in (5, 9, 7, 9, 9):
            wanted = oracles.steered_logits(tiny.hf, prompt[:length], replacement.sites, 1.0, length - 1)
            torch.testing.assert_close(logits_of(tiny.model, prompt[:length]), wanted, **TOLERANCE)


def test_a_replacement_can_steer_again_after_its_block(tiny, prompt):
    replacement = random_replacement(tiny.model)
    found = []
    for _ in range(2):
        with replacement.steer(tiny.model):
            found.append(logits_of(tiny.model, prompt))
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_of_another_type_stays_in_its_type(folders, backend):
    model = psr.load_model(folders["llama"], backend=backend, dtype=torch.bfloat16)
    replacement = random_replacement(model)
    plain = logits_of(model, range(10, 20))
    for start in (None, torch.tensor([4])):
        with replacement.steer(model, start=start):
            steered = logits_of(model, range(10, 20))
        assert steered.dtype == torch.bfloat16
        assert not torch.equal(steered[-1], plain[-1])


def test_steering_passes_gradients_and_leaves_the_weights_without(fresh):
    replacement = random_replacement(fresh.model, layers=[0], rank=8)  # so that some probe is above zero at the one steered token
    [site] = replacement.sites.values()
    site.weights.requires_grad_(True)
    with replacement.steer(fresh.model):
        fresh.model(torch.tensor([[10, 11, 12]])).square().sum().backward()
    assert site.weights.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in fresh.model.parameters())


def test_coefficients_are_equation_8():
    site = Site(torch.eye(2, 4), torch.tensor([[1.0, 0, 0, 0], [0, -1.0, 0, 0]]), torch.tensor([0.5, 0.0]), "relu")
    activation = torch.tensor([[2.0, 3.0, 0.0, 0.0], [-1.0, -3.0, 0.0, 0.0]])
    assert site.coefficients(activation).tolist() == [[2.5, 0.0], [0.0, 3.0]]
    assert site.intervention(activation).tolist() == [[2.5, 0.0, 0.0, 0.0], [0.0, 3.0, 0.0, 0.0]]
    assert site.intervention(activation[None, None]).shape == (1, 1, 2, 4)


def test_a_replacement_names_itself(tiny_llama):
    assert repr(random_replacement(tiny_llama.model, rank=2)) == (
        "Replacement(random, 3 hook points from blocks.0.hook_resid_post, rank 2, span R, for llama)"
    )
