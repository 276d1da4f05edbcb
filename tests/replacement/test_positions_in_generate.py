"""Where transformers' own ways of generating, and unusual calls of a model, are steered: as by hooks at known positions."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import oracles
import pytest
import torch
from helpers import BACKENDS, random_replacement
from micro_models import PAD, micro_model, micro_replacement

from psr_lens.replacement import Replacement

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}
TEXT = list(range(20, 40))
POINT = "blocks.0.hook_resid_post"
"""Before another layer, which reads what is steered at all tokens."""
MADE = Replacement({POINT: micro_replacement().sites["blocks.1.hook_resid_post"]}, "R", "drawn", {})
STEPS, ALPHA = 8, 2.0
KINDS = ("Llama", "Mistral", "GPT2")  # a window of 6 tokens, and positions that are learned

model_of = cache(micro_model)


def logits(kind: str, ids: list[int], start: int) -> torch.Tensor:
    """By the equations, steered from `start` on."""
    return oracles.edited_logits(model_of(kind), ids, edits(start))


def edits(start: int) -> dict[str, Any]:
    return {POINT: oracles.all_added((MADE.sites[POINT], ALPHA, start))}


@cache
def greedy(kind: str, length: int) -> list[int]:
    return oracles.edited_greedy(model_of(kind), TEXT[:length], STEPS, edits(length - 1))


def generated(kind: str, length: int, **options: Any) -> list[list[int]]:
    model, prompt = model_of(kind), torch.tensor([TEXT[:length]])
    if "inputs_embeds" in options:
        options["inputs_embeds"] = model.get_input_embeddings()(prompt)
    else:
        options |= {"inputs": prompt, "attention_mask": torch.ones_like(prompt)}
    found = model.generate(**{"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": PAD, **options})
    return found[:, -STEPS:].tolist()


WAYS: dict[str, dict[str, Any]] = {
    "cache": {},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "prompt look-up": {"prompt_lookup_num_tokens": 4, "eos_token_id": PAD},  # transformers 5.9 fails without an end token
    "chunks": {"prefill_chunk_size": 2},
    "embeddings": {"inputs_embeds": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_these_answers_show_where_steering_begins(kind):
    """Else the tests below would say nothing."""
    other = {begin: oracles.edited_greedy(model_of(kind), TEXT[:6], STEPS, edits(begin)) for begin in (0, 6, 99)}
    assert greedy(kind, 6) not in other.values()


@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_greedy_answers_are_those_of_the_equations(kind, way, length):
    wanted = greedy(kind, length)
    with MADE.attach(model_of(kind), ALPHA):
        assert generated(kind, length, **WAYS[way]) == [wanted]


@pytest.mark.parametrize("kind", KINDS)
def test_an_assistant_changes_nothing_whoever_it_is(kind):
    other, twin, wanted = micro_model(kind, seed=1), copy.deepcopy(model_of(kind)), greedy(kind, 6)
    with MADE.attach(model_of(kind), ALPHA):
        for assistant in (other, twin):
            assert generated(kind, 6, assistant_model=assistant) == [wanted]
        if kind == "Llama":
            assert generated(kind, 6, assistant_early_exit=1) == [wanted]


@contextmanager
def by_hand(kind: str, start: int) -> Iterator[None]:
    """Each row of each call steered from a column on; only without a cache does that mean anything."""
    site = MADE.sites[POINT]

    def after(module: Any, given: Any, output: Any) -> Any:
        rows = output[0] if isinstance(output, tuple) else output
        changed = torch.stack([row + oracles.added(site, row, ALPHA, start) for row in rows])
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = oracles.blocks(model_of(kind))[0].register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.3},
        {"do_sample": True, "num_return_sequences": 4},
        {"num_beams": 2, "do_sample": True},
    ],
    ids=str,
)
def test_beams_and_several_answers_are_those_of_a_hook_without_a_cache(kind, options):
    torch.manual_seed(0)
    with by_hand(kind, 5):
        wanted = generated(kind, 6, use_cache=False, **options)
    torch.manual_seed(0)
    with MADE.attach(model_of(kind), ALPHA):
        assert generated(kind, 6, **options) == wanted


# --- calls by hand ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask", [torch.long, torch.bool, torch.float32])
def test_left_padding_with_positions_of_ones_own(kind, mask):
    ids = torch.tensor([[PAD] * 3 + TEXT[:4], TEXT[4:11], [PAD] * 7])  # the last row is padding alone
    real = ids != PAD
    places = (real.cumsum(1) - 1).clamp(min=0)
    with MADE.attach(model_of(kind), ALPHA) as model:
        found = model(ids, attention_mask=real.to(mask), position_ids=places).logits
    torch.testing.assert_close(found[0, 3:], logits(kind, TEXT[:4], 3), **TOLERANCE)
    torch.testing.assert_close(found[1], logits(kind, TEXT[4:11], 6), **TOLERANCE)


@torch.no_grad()
def test_a_cache_that_is_repeated_or_cut_back_in_the_response_stays_known():
    with MADE.attach(model_of("Llama"), ALPHA) as model:
        repeated = model(torch.tensor([TEXT[:5]])).past_key_values
        repeated.batch_repeat_interleave(3)
        found = model(torch.tensor([[21], [22], [23]]), past_key_values=repeated).logits
        cut = model(torch.tensor([TEXT[:5]])).past_key_values
        model(torch.tensor([TEXT[5:9]]), past_key_values=cut)
        cut.crop(-3)
        after = model(torch.tensor([[33, 34]]), past_key_values=cut).logits[0]
    for row, token in zip(found, (21, 22, 23), strict=True):
        torch.testing.assert_close(row, logits("Llama", [*TEXT[:5], token], 4)[-1:], **TOLERANCE)
    torch.testing.assert_close(after, logits("Llama", [*TEXT[:6], 33, 34], 4)[-2:], **TOLERANCE)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_a_wrapped_model_and_one_that_recomputes_its_activations():
    wanted, ids = logits("Llama", TEXT[:5], 4), torch.tensor([TEXT[:5]])
    with torch.no_grad(), MADE.attach(model_of("Llama"), ALPHA) as model:
        torch.testing.assert_close(model(ids, return_dict=False)[0][0], wanted, **TOLERANCE)
        torch.testing.assert_close(torch.nn.DataParallel(model)(ids).logits[0], wanted, **TOLERANCE)
    trained = micro_model("Llama").train().requires_grad_(True)
    gradients = []
    for recomputes in (False, True):
        if recomputes:
            trained.gradient_checkpointing_enable()
        trained.zero_grad()
        with MADE.attach(trained, ALPHA):
            found = trained(ids, use_cache=False).logits
            found.square().sum().backward()
        torch.testing.assert_close(found[0].detach(), wanted, **TOLERANCE)
        gradients.append([weight.grad.clone() for weight in trained.parameters()])
    torch.testing.assert_close(*gradients, **TOLERANCE)


# --- TransformerLens's own ways ---------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_texts_are_steered_in_every_way_of_transformer_lens(load, backend):
    case = load("llama-gqa", backend)
    made, texts = random_replacement(case.model, size=0.3), ["what is a bear ?", "what ?", "tell me about the fox ."]
    ids = [case.model.to_tokens(each)[0].tolist() for each in texts]
    answers = [oracles.greedy(case.hf, each, 5, oracles.layer_edits(made.sites, 1.0, len(each) - 1)) for each in ids]
    options = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False, "return_type": "tokens"}
    wanted = [oracles.steered_logits(case.hf, each, made.sites, 1.0, len(each) - 1) for each in ids]
    with made.steer(case.model):
        for cached in (True, False):
            found = case.model.generate(texts, use_past_kv_cache=cached, **options)
            assert [row[-5:].tolist() for row in found] == answers
        one = torch.tensor(ids[:1])
        for found in (
            case.model(texts[0])[0],
            case.model(one[0])[0],
            case.model.run_with_cache(one)[0][0],
            case.model.run_with_hooks(one, fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: None)])[0],
        ):
            torch.testing.assert_close(found, wanted[0], **TOLERANCE)
        for row, alone in zip(case.model(texts, padding_side="left"), wanted, strict=True):
            torch.testing.assert_close(row[-len(alone) :], alone, **TOLERANCE)
        loss = case.model(one, return_type="loss")
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(wanted[0][:-1], one[0, 1:]), **TOLERANCE)
