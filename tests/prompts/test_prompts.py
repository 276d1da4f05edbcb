"""Prompt pairs, and that each response token in one context is compared with itself in the other."""

from typing import NamedTuple

import oracles
import pytest
import torch
from chat_templates import Stub
from helpers import CONTEXT, pairs_of, random_triplets
from hypothesis import assume, example, given
from hypothesis import strategies as st
from prompt_stubs import GLUED, NO_SYSTEM_ROLE, SILENT, STYLES, byte_level, decoded, spelled, stub

import psr_lens as psr
from psr_lens.activations.batches import context_batch, length_batches
from psr_lens.errors import InputError, PsrLensError
from psr_lens.models import forward
from psr_lens.prompts import PromptPair, Triplet, check_triplets, rephrase, token_table

WORDS = ["what", "is", "a", "bear", "?", "tell", "me", "how", "to", "bake", "bread", ",", "user", "model", "assistant", "the"]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
any_text = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp", "Mn")), min_size=1, max_size=12)
responses = st.lists(st.integers(7, 300), min_size=1, max_size=12).map(tuple)


class Drawn(NamedTuple):
    """What hypothesis draws: a style of prompting, and what to say in it."""

    style: str
    questions: list[str]
    instructions: list[str]
    responses: list[tuple[int, ...]]

    def triplets(self) -> list[Triplet]:
        pairs = psr.prompt_pairs(stub(self.style), self.questions, self.instructions)
        return [Triplet(pair, response, "") for pair, response in zip(pairs, self.responses, strict=False)]


drawn = st.builds(
    Drawn,
    st.sampled_from(STYLES),
    st.lists(texts, min_size=1, max_size=4),
    st.lists(texts, min_size=1, max_size=3),
    st.lists(responses, min_size=4, max_size=4),
)


@given(drawn, st.sampled_from(["R", "QR"]))
def test_the_span_holds_the_same_tokens_in_the_same_order_in_both_contexts(case, span):
    triplets = case.triplets()
    base, prompted = (context_batch(triplets, context, span) for context in ("base", "prompted"))
    for row, triplet in enumerate(triplets):
        left, right = base.tokens[row][base.span[row]], prompted.tokens[row][prompted.span[row]]
        assert left.tolist() == right.tolist()
        assert tuple(left[-len(triplet.response_ids) :].tolist()) == triplet.response_ids


@given(drawn, st.sampled_from(["base", "prompted"]))
def test_the_span_r_is_the_last_prompt_token_and_the_response(case, context):
    triplets = case.triplets()
    batch = context_batch(triplets, context, "R")
    for row, triplet in enumerate(triplets):
        prompt = len(triplet.pair.ids(context))
        expected = list(range(prompt - 1, prompt + len(triplet.response_ids)))
        assert batch.span[row].nonzero().flatten().tolist() == expected
        assert batch.start[row] == prompt - 1
        assert batch.tokens[row, : expected[-1] + 1].tolist() == [*triplet.pair.ids(context), *triplet.response_ids]
        assert batch.mask[row].tolist() == [1] * (expected[-1] + 1) + [0] * (batch.mask.shape[1] - expected[-1] - 1)


@given(drawn, st.sampled_from(["base", "prompted"]))
def test_the_span_qr_begins_at_the_questions_first_token(case, context):
    style, triplets = case.style, case.triplets()
    batch = context_batch(triplets, context, "QR")
    for row, triplet in enumerate(triplets):
        start = int(batch.start[row])
        prompt = triplet.pair.ids(context)
        assert batch.span[row].nonzero().flatten().tolist() == list(range(start, len(prompt) + len(triplet.response_ids)))
        assert decoded(style, prompt[start:]).lstrip().startswith(spelled(style, triplet.pair.question))


@given(st.sampled_from([style for style in STYLES if style != "organism"]), any_text, any_text)
@example("llama 3", "a", "be kind")
@example("gemma", "model", "user")
@example("no system role", "assistant", "assistant")
@example("plain text", "\\n", "x")
def test_spans_hold_for_any_question_and_instruction(style, question, instruction):
    assume(question.strip() == question)
    assume(instruction.strip())
    [pair] = psr.prompt_pairs(stub(style), [question], instruction)
    length = pair.question_length
    assert pair.base_ids[-length:] == pair.prompted_ids[-length:]
    assert decoded(style, pair.base_ids[-length:]).lstrip().startswith(question)
    assert decoded(style, pair.base_ids[1 - length :]).lstrip().count(question) < decoded(style, pair.base_ids).count(question)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("question", ["a", "user", "assistant", "model", "what is a bear ?"])
def test_a_question_that_occurs_in_the_template_is_found_where_it_stands(style, question):
    [pair] = psr.prompt_pairs(stub(style), [question], "talk like a pirate .")
    own = decoded(style, pair.base_ids[-pair.question_length :])
    template = decoded(style, psr.prompt_pairs(stub(style), ["grain"], "talk like a pirate .")[0].base_ids)
    assert own.lstrip() == spelled(style, question) + template.split("grain")[1]


@given(drawn, st.sampled_from(["R", "QR"]))
def test_the_token_table_numbers_the_response_from_0_and_the_prompt_downwards_from_minus_1(case, span):
    style, triplets = case.style, case.triplets()
    table = token_table(stub(style), triplets, span)
    batch = context_batch(triplets, "base", span)
    assert len(table) == int(batch.span.sum()) == len(table.strings)
    for index, triplet in enumerate(triplets):
        rows = table.rows(index)
        assert table.token_ids[rows].tolist() == batch.tokens[index][batch.span[index]].tolist()
        kept = 1 if span == "R" else triplet.pair.question_length
        assert table.position[rows].tolist() == list(range(-kept, len(triplet.response_ids)))
        assert table.token_ids[rows][table.position[rows] == -1].item() == triplet.pair.base_ids[-1]
        assert table.token_ids[rows][table.position[rows] == 0].item() == triplet.response_ids[0]
    assert list(table.strings) == stub(style).tokenizer.convert_ids_to_tokens(table.token_ids.tolist())


@given(st.sampled_from(STYLES), texts, texts)
def test_prompts_are_what_the_chat_template_says_with_one_bos(style, question, instruction):
    tokenizer = stub(style).tokenizer
    [pair] = psr.prompt_pairs(stub(style), [question], instruction)
    if style == "plain text":
        base, prompted = (
            tokenizer(text, add_special_tokens=False).input_ids for text in (f"{question}\n", f"{instruction}\n{question}\n")
        )
        base, prompted = ([tokenizer.bos_token_id, *ids] for ids in (base, prompted))
    else:
        user = {"role": "user", "content": question}
        together = [{"role": "user", "content": f"{instruction}\n\n{question}"}]
        apart = [{"role": "system", "content": instruction}, user]
        base, prompted = (
            tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
            for messages in ([user], together if style == "no system role" else apart)
        )
    assert pair.base_ids == tuple(base)
    assert pair.prompted_ids == tuple(prompted)
    assert pair.base_ids.count(tokenizer.bos_token_id) == pair.prompted_ids.count(tokenizer.bos_token_id) == 1
    assert pair.base_ids != pair.prompted_ids


def test_plain_text_gets_no_bos_where_the_model_wants_none():
    model = Stub(byte_level(None), prepend_bos=False)
    [pair] = psr.prompt_pairs(model, ["what is a bear ?"], "be brief .")
    assert model.tokenizer.bos_token_id not in (*pair.base_ids, *pair.prompted_ids)


def test_where_the_template_glues_the_question_to_a_space_the_span_has_the_tokens_that_both_contexts_share():
    model = Stub(byte_level(GLUED))
    [pair] = psr.prompt_pairs(model, ["bear tail"], "be brief .")
    assert pair.base_ids[-pair.question_length :] == pair.prompted_ids[-pair.question_length :]
    assert model.tokenizer.decode(pair.base_ids[-pair.question_length :]).endswith("tail [/INST]")


@pytest.mark.parametrize("template", [NO_SYSTEM_ROLE, SILENT], ids=["raises", "drops it"])
def test_an_insisted_system_role_that_the_template_lacks_is_refused(template):
    with pytest.raises(PsrLensError, match="system_role"):
        psr.prompt_pairs(Stub(byte_level(template)), ["what is a bear ?"], "be brief .", system_role=True)


def test_a_template_that_drops_the_system_message_gets_the_instruction_before_the_question():
    model = Stub(byte_level(SILENT))
    [pair] = psr.prompt_pairs(model, ["what is a bear ?"], "be brief .")
    assert model.tokenizer.decode(pair.prompted_ids) == "<|begin|>be brief .\n\nwhat is a bear ?\n"


def test_the_system_role_can_be_declined():
    [pair] = psr.prompt_pairs(stub("organism"), ["what is a bear ?"], "be brief .", system_role=False)
    assert decoded("organism", pair.prompted_ids) == "<bos> <user> be brief. what is a bear? <end> <assistant>"


def test_paraphrases_take_turns():
    pairs = psr.prompt_pairs(stub("organism"), ["what is a bear ?"] * 5, ["be brief .", "keep it short ."])
    assert [pair.instruction for pair in pairs] == ["be brief .", "keep it short .", "be brief .", "keep it short .", "be brief ."]
    assert len({pair.base_ids for pair in pairs}) == 1


def test_rephrasing_keeps_the_question_the_response_and_the_scores(tiny_llama):
    triplets = random_triplets(tiny_llama.model, 4)
    others = rephrase(tiny_llama.model, triplets, "be gloomy .")
    for old, new in zip(triplets, others, strict=True):
        assert (new.response_ids, new.trait, new.coherence) == (old.response_ids, old.trait, old.coherence)
        assert new.pair.base_ids == old.pair.base_ids
        assert new.pair.prompted_ids != old.pair.prompted_ids
        assert new.pair.instruction == "be gloomy ."


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 200))
def test_batches_hold_every_triplet_once_within_the_budget(lengths, budget):
    pair = PromptPair("q", "i", (1, 2), (1, 2, 3), 1)
    triplets = [Triplet(pair, (9,) * length, "") for length in lengths]
    batches = list(length_batches(triplets, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(triplets)))
    for batch in batches:
        padded = len(batch) * max(3 + lengths[index] for index in batch)
        assert padded <= budget or len(batch) == 1


@given(
    st.lists(st.integers(1, 14), min_size=1, max_size=4),
    st.sampled_from(["base", "prompted"]),
    st.sampled_from(["left", "right"]),
    st.integers(0, 5),
)
def test_activations_on_the_span_do_not_depend_on_padding(tiny, lengths, context, side, extra):
    triplets = [
        Triplet(pair, tuple(range(20, 20 + length)), "")
        for pair, length in zip(pairs_of(tiny.model, len(lengths)), lengths, strict=True)
    ]
    batch = context_batch(triplets, context, "R")
    tokens, mask, span = (torch.nn.functional.pad(each.long(), (0, extra)) for each in (batch.tokens, batch.mask, batch.span))
    if side == "left":
        shifts = (mask == 0).sum(1).tolist()
        tokens, mask, span = (
            torch.stack([row.roll(shift) for row, shift in zip(each, shifts, strict=True)]) for each in (tokens, mask, span)
        )
    seen = {}
    hooks = [(f"blocks.{layer}.hook_resid_post", lambda a, hook, layer=layer: seen.update({layer: a})) for layer in range(3)]
    with torch.no_grad(), tiny.model.hooks(fwd_hooks=hooks):
        forward(tiny.model, tokens, mask)
        for row, triplet in enumerate(triplets):
            ids = (*triplet.pair.ids(context), *triplet.response_ids)
            alone = oracles.read(tiny.hf, ids)
            for layer in range(3):
                wanted = alone.residuals[layer][len(triplet.pair.ids(context)) - 1 :]
                torch.testing.assert_close(seen[layer][row][span[row].bool()], wanted, atol=1e-4, rtol=1e-4)


def test_a_response_that_just_fits_the_context_is_taken_and_one_token_more_is_not(tiny_llama):
    [pair] = pairs_of(tiny_llama.model, 1)
    room = CONTEXT - len(pair.prompted_ids)
    check_triplets(tiny_llama.model, [Triplet(pair, (9,) * room, "")])
    with pytest.raises(InputError, match=f"context of {CONTEXT}"):
        check_triplets(tiny_llama.model, [Triplet(pair, (9,) * (room + 1), "")])
