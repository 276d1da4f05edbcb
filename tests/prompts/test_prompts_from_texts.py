"""Prompt pairs from texts in two versions, where the second is not simply an instruction plus the question."""

import pytest
from chat_templates import Stub
from prompt_stubs import STYLES, byte_level, decoded, spelled, stub

import psr_lens as psr
from psr_lens.errors import InputError

BASE = "how do you bake bread ?"


@pytest.mark.parametrize("style", STYLES)
def test_the_base_prompt_is_that_of_prompt_pairs_and_the_other_that_of_its_own_text(style):
    prompted = "how do you bake bread for a bear ?"
    [pair] = psr.prompt_pairs_from_texts(stub(style), [BASE], [prompted])
    [plain] = psr.prompt_pairs(stub(style), [BASE], "be brief .")
    [other] = psr.prompt_pairs(stub(style), [prompted], "be brief .")
    assert pair.base_ids == plain.base_ids
    assert pair.prompted_ids == other.base_ids
    assert pair.question == BASE
    assert pair.instruction == prompted


@pytest.mark.parametrize("style", STYLES)
def test_an_instruction_before_the_question_is_named_and_the_span_qr_is_the_question(style):
    [pair] = psr.prompt_pairs_from_texts(stub(style), [BASE], [f"be brief . {BASE}"])
    assert pair.instruction == "be brief ."
    length = pair.span_length("QR")
    assert pair.base_ids[-length:] == pair.prompted_ids[-length:]
    assert spelled(style, "bake bread ?") in decoded(style, pair.base_ids[-length:])


@pytest.mark.parametrize("style", STYLES)
def test_an_instruction_after_the_question_is_named_and_the_span_qr_is_what_comes_after_both(style):
    [pair] = psr.prompt_pairs_from_texts(stub(style), [BASE], [f"{BASE} be brief ."])
    assert pair.instruction == "be brief ."
    assert 1 <= pair.span_length("QR") < len(pair.base_ids)
    assert "bake" not in decoded(style, pair.base_ids[-pair.span_length("QR") :])


def test_where_not_even_the_last_token_is_shared_the_span_is_that_token():
    class Merging:
        """A tokenizer in which the last word and the line's end are one token."""

        chat_template = bos_token = None
        is_fast = True

        def __call__(self, text, **_):
            words = text.split(" ")
            ends = [sum(map(len, words[: place + 1])) + place for place in range(len(words))]
            return {"input_ids": [sum(map(ord, word)) for word in words], "offset_mapping": [(0, end) for end in ends]}

    [pair] = psr.prompt_pairs_from_texts(Stub(Merging()), ["a b"], ["a b c"])
    assert pair.base_ids[-1] != pair.prompted_ids[-1]
    assert pair.span_length("R") == pair.span_length("QR") == 1


def test_pairs_of_texts_can_be_sampled_captured_and_steered(organism):
    base = psr.organism.questions(6)
    pairs = psr.prompt_pairs_from_texts(organism.model, base, [f"talk like a pirate . {question}" for question in base])
    triplets = psr.sample_responses(organism.model, pairs)
    captured = psr.capture(organism.model, triplets, "resid_post")
    assert len(captured.tokens) == sum(1 + len(triplet.response_ids) for triplet in triplets)
    assert psr.fit(organism.model, triplets).sites


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("base", "prompted", "message"),
    [
        ("text", ["text"], "base: got 'text', expected a list of texts. Put it in brackets"),
        (["text"], [], "prompted: got an empty list, expected at least one prompt"),
        (["text"], [" "], r"prompted\[0\]: got ' ', expected a text"),
        (["text"], ["text"] * 2, "prompted: got 2 prompts, expected one for each of the 1 base prompts"),
        (["text"], ["bear " * 11_000], r"prompted\[0\]: got a prompt of \d+ tokens, expected fewer than the model's context"),
        (["bear " * 11_000], ["text"], r"base\[0\]: got a prompt of \d+ tokens"),
    ],
    ids=["one string", "none", "empty", "too many", "prompted too long", "base too long"],
)
def test_texts_that_make_no_pair_are_named(base, prompted, message):
    with pytest.raises(InputError, match=message):
        psr.prompt_pairs_from_texts(Stub(byte_level(None)), base, prompted)
