"""Attention patterns in two contexts: which columns are one token, and what is compared."""

from itertools import pairwise

import pytest
import torch
from helpers import LAYERS, random_triplets
from hypothesis import given
from hypothesis import strategies as st

import psr_lens as psr
from psr_lens.activations.attention_patterns import INSTRUCTION, align_keys, key_counts
from psr_lens.prompts import PromptPair, Triplet

ids = st.lists(st.integers(0, 3), max_size=6).map(tuple)  # few ids, so that parts are alike by chance


@given(start=ids, only_base=ids, instruction=ids, question=ids.filter(len), response=ids.filter(len))
def test_keys_are_aligned_with_the_same_token_and_cover_the_prompted_context(start, only_base, instruction, question, response):
    pair = PromptPair("", "", (*start, *only_base, *question), (*start, *instruction, *question), len(question))
    triplet = Triplet(pair, response, "")
    base, prompted = (*pair.base_ids, *response), (*pair.prompted_ids, *response)
    alignment = align_keys(triplet)
    assert len(alignment.counterpart) == len(base)
    matched = [place for place in alignment.counterpart if place is not None]
    assert all(base[here] == prompted[there] for here, there in enumerate(alignment.counterpart) if there is not None)
    assert all(one < other for one, other in pairwise(matched))
    assert sorted([*matched, *alignment.instruction]) == list(range(len(prompted)))
    assert len(alignment.instruction) <= len(instruction)
    assert alignment.counterpart.count(None) <= len(only_base)
    assert alignment.counterpart[-len(response) :] == tuple(range(len(prompted) - len(response), len(prompted)))


@pytest.mark.parametrize("span", ["R", "QR"])
def test_patterns_are_those_of_run_with_cache_in_both_contexts(tiny, span):
    triplets = random_triplets(tiny.model, 4)
    captured = psr.capture(tiny.model, triplets, "pattern", span=span)
    keys, instruction_keys = key_counts(triplets)
    for layer in range(LAYERS):
        name = f"blocks.{layer}.attn.hook_pattern"
        assert captured[name].shape == (len(captured), 4, keys)
        assert captured[f"{name}{INSTRUCTION}"].shape == (len(captured), 4, instruction_keys)
        for index, triplet in enumerate(triplets):
            kept = triplet.pair.span_length(span)
            (base, start), (prompted, start_prompted) = (
                (
                    tiny.model.run_with_cache(torch.tensor([[*prompt, *triplet.response_ids]]))[1][name][0],
                    len(prompt) - kept,
                )
                for prompt in (triplet.pair.base_ids, triplet.pair.prompted_ids)
            )
            alignment = align_keys(triplet)
            rows = captured.tokens.rows(index)
            changed, on_instruction = captured[name][rows], captured[f"{name}{INSTRUCTION}"][rows]
            for column, there in enumerate(alignment.counterpart):
                wanted = prompted[:, start_prompted:, there] - base[:, start:, column]
                torch.testing.assert_close(changed[..., column], wanted.T, atol=1e-5, rtol=1e-4)
            assert changed[..., len(alignment.counterpart) :].abs().sum() == 0
            wanted = prompted[:, start_prompted:][..., list(alignment.instruction)].transpose(0, 1)
            torch.testing.assert_close(on_instruction[..., : wanted.shape[-1]], wanted, atol=1e-5, rtol=1e-4)
            assert on_instruction[..., wanted.shape[-1] :].abs().sum() == 0


@pytest.mark.parametrize("difference", ["accumulated", "local"])
def test_what_the_instruction_gets_is_taken_from_the_others(tiny, difference):
    captured = psr.capture(tiny.model, random_triplets(tiny.model, 5), ["pattern", "resid_post"], difference=difference)
    for layer in range(LAYERS):
        name = f"blocks.{layer}.attn.hook_pattern"
        total = captured[name].sum(-1) + captured[f"{name}{INSTRUCTION}"].sum(-1)
        torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-5, rtol=0)
        assert captured[f"{name}{INSTRUCTION}"].sum(-1).max() > 0.01


def test_a_token_that_only_the_base_prompt_has_loses_all_its_attention(tiny_llama):
    model = tiny_llama.model
    pair = PromptPair("", "", (5, 11, 12, 20, 21), (5, 13, 14, 15, 20, 21), 2)
    triplet = Triplet(pair, (30, 31), "")
    assert align_keys(triplet).counterpart == (0, None, None, 4, 5, 6, 7)
    captured = psr.capture(model, [triplet], "pattern", layers=[1])
    pattern = model.run_with_cache(torch.tensor([[*pair.base_ids, 30, 31]]))[1]["blocks.1.attn.hook_pattern"][0]
    changed = captured["blocks.1.attn.hook_pattern"]
    torch.testing.assert_close(changed[..., 1:3], -pattern[:, 4:, 1:3].transpose(0, 1), atol=1e-6, rtol=1e-5)
    assert captured[f"blocks.1.attn.hook_pattern{INSTRUCTION}"].shape == (3, 4, 3)
