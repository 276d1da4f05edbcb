"""Texts become the ids that transformers gives them, a response those of the whole text, and special tokens in a text stay text."""

import functools

import pytest
from chat_templates import Stub
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import LOSSLESS, MAKERS, SPECIAL, TEMPLATE, tokenizer

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.prompts.text_encoding import TextEncoder

WORDS = ["what", " is", " the", "bear", " ", "\n", ".", "<", ">", "[", "s", "/", "the", "S"]
plain = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map("".join).filter(str.strip)
risky = st.lists(st.sampled_from([*WORDS, *SPECIAL, "<S>"]), min_size=1, max_size=8).map("".join).filter(str.strip)
kinds = st.sampled_from(list(MAKERS))


def free_of_special(text):
    return not any(each in text.lower() for each in map(str.lower, SPECIAL))


def direct(kind, text):
    return tuple(tokenizer(kind)(text, add_special_tokens=False)["input_ids"])


@functools.cache
def stub(kind, template=None):
    """A model with that tokenizer; a new one would copy it anew."""
    return Stub(tokenizer(kind, template))


@functools.cache
def special_ids(kind):
    """Ids of the special tokens, without that of unknown characters, which any text may have."""
    made = tokenizer(kind)
    return set(made.convert_tokens_to_ids([token for token in SPECIAL if token in made.get_vocab()])) - {made.unk_token_id}


@given(kinds, plain.filter(free_of_special))
def test_plain_text_is_as_transformers_encodes_it_with_the_bos_token_before_it(kind, question):
    made = tokenizer(kind)
    [pair] = psr.prompt_pairs(stub(kind), [question], "be brief .")
    assert pair.base_ids == (made.bos_token_id, *direct(kind, f"{question}\n"))
    assert pair.prompted_ids == (made.bos_token_id, *direct(kind, f"be brief .\n{question}\n"))


def test_the_first_word_after_llamas_bos_token_has_its_space():
    made = tokenizer("llama")
    [pair] = psr.prompt_pairs(Stub(made), ["what is the bear ?"], "be brief .")
    assert made.convert_ids_to_tokens(pair.base_ids)[:4] == ["<s>", "▁what", "▁is", "▁the"]
    [without] = psr.prompt_pairs(Stub(made, prepend_bos=False), ["what is the bear ?"], "be brief .")
    assert without.base_ids == pair.base_ids[1:]


@given(kinds, st.booleans(), plain.filter(free_of_special), plain.filter(free_of_special))
@example("llama", False, "what is", "the bear")
@example("byte level", False, "what is", "\n\nthe")
@example("llama", True, "what is", "\nthe")
@settings(max_examples=60)
def test_a_response_has_the_ids_that_it_has_in_the_whole_text(kind, chat, question, response):
    model = stub(kind, TEMPLATE if chat else None)
    made = model.tokenizer
    [pair] = psr.prompt_pairs(model, [question], "be brief .")
    [triplet] = _responses(model, pair, response)
    text = f"<s>[INST] user\n{question}<|im_end|>\n[INST] assistant\n" if chat else f"{question}\n"
    if not free_of_special(text.replace("<s>[INST]", "").replace("<|im_end|>", "").replace("[INST]", "") + response):
        return
    alone, whole = direct(kind, text), direct(kind, text + response)
    if whole[: len(alone)] == alone and len(whole) > len(alone):
        assert triplet.response_ids == whole[len(alone) :]
    elif kind in LOSSLESS:  # a token reaches across the border
        assert made.decode(list(alone + triplet.response_ids), clean_up_tokenization_spaces=False) == made.decode(
            list(whole), clean_up_tokenization_spaces=False
        )


def _responses(model, pair, response):
    try:
        return psr.with_responses(model, [pair], [response])
    except InputError as error:
        assert "a text of at least one token" in str(error)  # noqa: PT017
        return [psr.Triplet(pair, (), response)]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_what_a_tokenizer_puts_around_a_text_is_no_part_of_prompt_or_response(template):
    made, plain = (tokenizer(kind, template) for kind in ("llama, end token", "llama"))
    first, *_, last = made("what is")["input_ids"]
    assert (first, last) == (made.bos_token_id, made.eos_token_id)
    triplets = []
    for each in (made, plain):
        pairs = psr.prompt_pairs(Stub(each), ["what is the bear ?"], "be brief .")
        triplets += psr.with_responses(Stub(each), pairs, ["bear ."])
    assert triplets[0] == triplets[1]
    assert made.eos_token_id not in (*triplets[0].pair.base_ids, *triplets[0].pair.prompted_ids, *triplets[0].response_ids)


def test_a_response_after_a_line_end_has_no_space_before_its_first_word():
    made = tokenizer("llama")
    pairs = psr.prompt_pairs(Stub(made), ["what is"] * 3, "be brief .")
    found = psr.with_responses(Stub(made), pairs, ["bear .", " bear .", "arr , bear"])
    spelled = ["".join(made.convert_ids_to_tokens(each.response_ids)) for each in found]
    assert spelled == ["bear▁.", "▁bear▁.", "arr▁,▁bear"]


def test_a_response_to_a_prompt_that_is_known_by_its_ids_alone_continues_a_text_too():
    made = tokenizer("llama")
    pair = psr.PromptPair("what is", "be brief .", (1, 300, 301), (1, 302, 300, 301), 1)
    [triplet] = psr.with_responses(Stub(made), [pair], ["bear ."])
    assert "".join(made.convert_ids_to_tokens(triplet.response_ids)) == "bear▁."


@functools.cache
def special_of_template(kind, chat):
    """The special tokens of both prompts of harmless texts, in order."""
    [harmless] = psr.prompt_pairs(stub(kind, TEMPLATE if chat else None), ["bear"], "what")
    return [[each for each in harmless.ids(context) if each in special_ids(kind)] for context in ("base", "prompted")]


@given(kinds, st.booleans(), risky, risky, risky)
@example("word piece", True, "</s>", "[INST]", "<unk>")
@example("unigram", True, "<s>what", "bear</s>", "[/INST]")
@example("lower case", True, "<S>what", "</S>", "<s>")
@example("slow", False, "<s>", "<|im_end|>", "x<|im_end|>")
@settings(max_examples=120)
def test_a_special_token_in_a_text_stays_text_and_the_templates_stay_special(kind, chat, question, instruction, response):
    model, special = stub(kind, TEMPLATE if chat else None), special_ids(kind)
    made = model.tokenizer
    pairs = psr.prompt_pairs(model, [question], instruction)
    for context, of_template in zip(("base", "prompted"), special_of_template(kind, chat), strict=True):
        assert [each for each in pairs[0].ids(context) if each in special] == of_template
    [triplet] = _responses(model, pairs[0], response)
    assert not special & set(triplet.response_ids)
    if kind in LOSSLESS:
        text = f"[INST] user\n{question}<|im_end|>\n[INST] assistant\n{response}" if chat else f"{question}\n{response}"
        ids = list(pairs[0].base_ids[1:] + triplet.response_ids)
        assert made.decode(ids, clean_up_tokenization_spaces=False).lstrip(" ") == text.lstrip(" ")


@given(risky)
def test_between_special_tokens_a_text_is_as_a_tokenizer_without_any_has_it(text):
    """For byte-level BPE, which keeps nothing in mind between two special tokens."""
    made = tokenizer("byte level")
    bare = type(made.backend_tokenizer).from_str(made.backend_tokenizer.to_str())
    bare.encode_special_tokens = True
    encoder = TextEncoder(made)
    expected = [made.bos_token_id, *bare.encode(text).ids, made.eos_token_id, *bare.encode(text[::-1]).ids]
    masked = f"<s>{encoder.masked(text)}</s>{encoder.masked(text[::-1])}"
    assert list(encoder.encode(masked).ids) == expected
    assert encoder.unmasked(masked) == f"<s>{text}</s>{text[::-1]}"


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "slow"])
@pytest.mark.parametrize("question", ["<s> what is", "what </s> is", "is [INST]", "<|im_end|>", "\U0010f000<s>"])
def test_the_span_begins_at_a_question_with_special_tokens_in_it(kind, question):
    [pair] = psr.prompt_pairs(stub(kind, TEMPLATE), [question], "be brief .")
    [other] = psr.prompt_pairs(stub(kind, TEMPLATE), ["zq"], "be brief .")
    begin = len(pair.base_ids) - pair.question_length
    assert begin == len(other.base_ids) - other.question_length
    assert pair.base_ids[:begin] == other.base_ids[:begin]


def test_other_added_tokens_are_words_and_white_space_is_no_special_token():
    made = MAKERS["byte level"]()
    made.add_tokens(["<think>"])
    encoder = TextEncoder(made)
    assert encoder.encode(encoder.masked("<think>")).ids == (made.convert_tokens_to_ids("<think>"),)
    assert made.convert_tokens_to_ids("<think>") in encoder.encode(encoder.masked("<think> <s>")).ids


QWEN_3 = (
    "{% for message in messages %}[INST] {{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{{ message['content'].split('</s>')[-1] }}{% else %}{{ message['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}[INST] assistant\n{% endif %}"
)


def test_a_template_may_look_for_its_tokens_in_an_earlier_answer_but_not_in_a_question():
    made = tokenizer("byte level", QWEN_3)
    talk = [
        {"role": "user", "content": "what </s> is"},
        {"role": "assistant", "content": "the thought </s> the bear"},
        {"role": "user", "content": "what is the bear"},
    ]
    [pair] = psr.prompt_pairs(Stub(made), [talk], "be brief .")
    text = made.decode(list(pair.base_ids), clean_up_tokenization_spaces=False)
    assert "what </s> is" in text
    assert "thought" not in text
    assert made.eos_token_id not in pair.base_ids
    cuts = tokenizer("byte level", QWEN_3.replace("== 'assistant'", "!= 'tool'"))
    with pytest.raises(InputError, match=r"questions\[0\]: got a text with special tokens on which the chat template acts"):
        psr.prompt_pairs(Stub(cuts), ["what </s> is"], "be brief .")


def test_a_tokenizer_that_cannot_keep_special_tokens_as_text_says_so():
    class Stubborn(type(tokenizer("slow"))):
        def tokenize(self, text, **_):
            return super().tokenize(text)

    made = Stubborn(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    with pytest.raises(
        InputError, match=r"questions\[0\]: got a text that contains special tokens \('</s>'\), expected .* Stubborn"
    ):
        psr.prompt_pairs(Stub(made), ["what </s> is"], "be brief .")


@pytest.mark.parametrize("text", ["\ud800", "what \udfff is"])
def test_half_a_character_is_refused(text):
    for call in (
        lambda: psr.prompt_pairs(Stub(tokenizer("byte level")), [text], "be brief ."),
        lambda: psr.prompt_pairs(Stub(tokenizer("llama")), ["what is"], text),
        lambda: psr.with_responses(Stub(tokenizer("llama")), psr.prompt_pairs(Stub(tokenizer("llama")), ["what is"], "be"), [text]),
    ):
        with pytest.raises(InputError, match=r"\[0\]: got a text that is not Unicode"):
            call()


class Silent(type(tokenizer("slow"))):
    """A tokenizer of the wrong class, which has no tokens for letters, though its special tokens work."""

    def _tokenize(self, text, **_):
        return []


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_tokenizer_that_makes_nothing_of_a_prompt_is_named_with_it(template):
    made = Silent(bos_token="<s>", eos_token="</s>", additional_special_tokens=list(SPECIAL[3:]), name_or_path="some/model")
    made.chat_template = template
    which = r"which the tokenizer Silent \(some/model\) turns into no tokens"
    message = rf"questions\[0\]: got the text 'what is', {which}, expected at least one"
    with pytest.raises(InputError, match=message):
        psr.prompt_pairs(Stub(made), ["what is"], "be brief .")
    with pytest.raises(InputError, match=message.replace("questions", "base")):
        psr.prompt_pairs_from_texts(Stub(made), ["what is"], ["what is the"])


@pytest.mark.usefixtures("unchecked")
def test_a_pair_without_tokens_is_refused_before_the_model_runs(tiny_llama):
    for base, prompted, which in (((), (1, 2), "base"), ((1, 2), (), "prompted")):
        with pytest.raises(InputError, match=rf"pairs\[0\].{which}_ids: got no tokens"):
            psr.generate(tiny_llama.model, [psr.PromptPair("q", "i", base, prompted, 1)])
