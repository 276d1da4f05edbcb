"""Tokens of two models are paired exactly where both end at the same byte, whatever made them."""

import dataclasses
from itertools import accumulate

import pytest
import torch
import transformers
from chat_templates import Stub
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_tokenizers import MAKERS, SPECIAL, tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.transfer.pairing import paired_rows
from psr_lens.transfer.token_ends import token_ends

LETTERS = ["a", "b", "the", " ", "  ", "\n", ".", ",", "é", "ß", "語", "🙂", "👩‍👧", "\u0301", "▁", "Ġ", "<0x41>", "##a", "A"]
texts = st.lists(st.sampled_from(LETTERS), min_size=1, max_size=9).map("".join).filter(str.strip)


def random_tokenizer(kind: str, corpus: list[str]) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of one kind, whose vocabulary is what a tiny corpus made of it."""
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
        made.train_from_iterator(corpus, trainer)
    elif kind == "sentencepiece":  # as Llama's: ▁ for spaces, one before the text, and bytes for what is not known
        vocabulary = {"<unk>": 0} | {f"<0x{byte:02X}>": 1 + byte for byte in range(256)}
        pieces = {piece for text in corpus for piece in text.replace(" ", "▁").split("\n") if piece} | {"▁", "a", "▁the"}
        scored = [(token, -20.0) for token in vocabulary] + [(piece, -float(len(piece))) for piece in sorted(pieces)]
        made = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        spaces = decoders.Replace("▁", " ")
        made.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    elif kind == "wordpiece":
        letters = sorted({letter for text in (*corpus, *LETTERS) for letter in text if letter.strip()})
        words = [*letters, *(f"##{letter}" for letter in letters), "the", "##b"]
        known = dict.fromkeys(("[UNK]", *words))
        made = Tokenizer(models.WordPiece({word: index for index, word in enumerate(known)}, unk_token="[UNK]"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(cleanup=False)
    else:
        letters = sorted({letter for text in (*corpus, *LETTERS) for letter in text})
        made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
        made.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)


KINDS = ("bytes", "sentencepiece", "wordpiece", "characters")


def ends_of(made: transformers.PreTrainedTokenizerFast, text: str) -> tuple[list[int], list[int]]:
    ids = made(text, add_special_tokens=False)["input_ids"]
    return ids, token_ends(made, ids, text)


def ends_by_hand(kind: str, made: transformers.PreTrainedTokenizerFast, text: str) -> list[int]:
    """From the lengths of the tokens as the vocabulary spells them; of words, from the characters that the tokenizer reports."""
    encoding = made(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens = made.convert_ids_to_tokens(encoding["input_ids"])
    if kind == "wordpiece":  # which splits no character
        return [len(text[:end].encode()) for _, end in encoding["offset_mapping"]]
    if kind == "sentencepiece":  # less the space that it puts before the text
        sizes = [1 if token.startswith("<0x") else len(token.replace("▁", " ").encode()) for token in tokens]
        return [end - 1 for end in accumulate(sizes)]
    return list(accumulate(len(token) if kind == "bytes" else len(token.encode()) for token in tokens))


@given(st.sampled_from(KINDS), st.lists(texts, min_size=1, max_size=4), texts)
@example("bytes", ["a"], "🙂é語")
@example("sentencepiece", ["a"], "🙂 a語")
@example("wordpiece", ["a"], "the aab  b\nthe")
def test_ends_follow_the_text_to_its_end(kind: str, corpus: list[str], text: str) -> None:
    made = random_tokenizer(kind, corpus)
    _, ends = ends_of(made, text)
    assert ends == sorted(ends)
    assert not text.encode()[ends[-1] :].strip()
    ambiguous = kind == "sentencepiece" and ("▁" in text or "<0x" in text)  # spelt like a space and like a byte
    assert ambiguous or ends == ends_by_hand(kind, made, text)


@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.lists(texts, min_size=1, max_size=4), texts)
@example("bytes", "sentencepiece", ["a"], "🙂🙂")
def test_pairs_are_the_common_ends(one: str, other: str, corpus: list[str], text: str) -> None:
    first, second = (ends_of(random_tokenizer(kind, part), text)[1] for kind, part in ((one, corpus), (other, corpus[::-1])))
    pairs = psr.transfer.pair_tokens(first, second)
    source, target = (each.tolist() for each in pairs)
    assert [first[at] for at in source] == [second[at] for at in target]
    assert source == sorted(set(source))
    assert target == sorted(set(target))
    assert {first[at] for at in source} == ({*first} & {*second}) - {0}
    for ends, chosen in ((first, source), (second, target)):
        assert all(at == 0 or ends[at - 1] < ends[at] for at in chosen)  # each brings the text to its end


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), max_size=8))
def test_pairs_of_any_two_divisions(first: list[int], second: list[int]) -> None:
    ends = [list(accumulate(each)) for each in (first, second)]
    source, target = psr.transfer.pair_tokens(*ends)
    brute = []
    for i, end in enumerate(ends[0]):
        for j, same in enumerate(ends[1]):
            begins = (i == 0 or ends[0][i - 1] < end) and (j == 0 or ends[1][j - 1] < same)
            if end == same > 0 and begins:
                brute.append((i, j))
    assert list(zip(source.tolist(), target.tolist(), strict=True)) == brute


def test_bytes_of_a_character_end_inside_it() -> None:
    made = random_tokenizer("bytes", ["a"])
    assert ends_of(made, "a🙂b")[1] == [1, 2, 3, 4, 5, 6]
    fallback = random_tokenizer("sentencepiece", ["a"])
    ids, ends = ends_of(fallback, "a🙂b")
    assert fallback.convert_ids_to_tokens(ids)[-5:] == ["<0xF0>", "<0x9F>", "<0x99>", "<0x82>", "<0x62>"]
    assert ends[-5:] == [2, 3, 4, 5, 6]


def test_sampled_tokens_that_are_no_text_still_end_somewhere() -> None:
    """A response cut inside a character: decoding shows one sign for all of its bytes, or one for each."""
    made = random_tokenizer("bytes", ["a"])
    ids = made("a🙂b🙂", add_special_tokens=False)["input_ids"]
    cut = [*ids[:3], ids[5], *ids[6:9]]
    assert token_ends(made, cut, made.decode(cut)) == [1, 4, 4, 5, 8, 8, 8]
    made = random_tokenizer("sentencepiece", ["a"])
    ids = made("🙂b", add_special_tokens=False)["input_ids"]
    cut = [each for each in ids if made.convert_ids_to_tokens(each) != "<0x82>"]
    text = made.decode(cut)
    assert text.count("\ufffd") >= 3
    assert token_ends(made, cut, text)[-1] == len(text.encode())


def test_a_first_space_and_one_before_punctuation_are_no_text(organism) -> None:
    made = organism.model.tokenizer
    ids = made("arr , wash the bear .", add_special_tokens=False)["input_ids"]
    assert made.decode(ids) == "arr, wash the bear."
    assert token_ends(made, ids, made.decode(ids)) == [3, 4, 9, 13, 18, 19]
    llama = tokenizer("llama")
    ids = llama("the bear", add_special_tokens=False)["input_ids"]
    assert token_ends(llama, ids, "the bear")[-1] == 8


def test_special_tokens_end_where_the_token_before_them_does(organism) -> None:
    made = organism.model.tokenizer
    ids = made("the bear", add_special_tokens=False)["input_ids"]
    between = [made.bos_token_id, ids[0], made.eos_token_id, ids[1], made.eos_token_id, 10**6]
    ends = token_ends(made, between, "the bear")
    assert ends == [0, 3, 3, 8, 8, 8]
    assert psr.transfer.pair_tokens(ends, [3, 8]).source.tolist() == [1, 3]


@pytest.mark.parametrize("kind", MAKERS)
def test_tokenizers_as_models_have_them(kind: str) -> None:
    made = tokenizer(kind)
    text = "what is the bear .\n\nThe bear"
    ids = made(text, add_special_tokens=False)["input_ids"]
    ends = token_ends(made, ids, text)
    assert ends[-1] == len(text)
    wanted = {"slow": list(range(1, len(text) + 1))}.get(kind)
    assert wanted is None or ends == wanted


def test_tokens_of_another_text_are_refused() -> None:
    made = random_tokenizer("characters", ["a"])
    ids = made("a b", add_special_tokens=False)["input_ids"]
    with pytest.raises(InputError, match="the text that its tokens spell"):
        token_ends(made, ids, "b a")
    for ends in ([2, 1], [-1, 2]):
        with pytest.raises(InputError, match="source_ends"):
            psr.transfer.pair_tokens(ends, [2])


# --- texts in two models ----------------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}[INST]{% endif %}"


@pytest.fixture(scope="module")
def texts_in_two(organism):
    questions = psr.organism.questions(4, split="train", seed=3)
    pairs = psr.prompt_pairs(organism.model, questions, instruction="talk like a pirate .", system="be brief .")
    return psr.sample_responses(organism.model, pairs, sampling=psr.SamplingConfig(max_new_tokens=60))


def test_the_other_model_gets_prompts_of_its_own(organism, texts_in_two) -> None:
    """Compared with `prompt_pairs` and the tokenizer itself, with another template and tokenizer."""
    other = Stub(tokenizer("byte level", TEMPLATE))
    made = psr.transfer.pair_texts(organism.model, other, texts_in_two)
    assert [each.source for each in made] == list(texts_in_two)
    questions = [each.pair.question for each in texts_in_two]
    wanted = psr.prompt_pairs(other, questions, instruction="talk like a pirate .", system="be brief .")
    assert [each.target.pair for each in made] == list(wanted)
    for each in made:
        assert each.target.response == each.source.response
        assert other.tokenizer.decode(each.target.response_ids, skip_special_tokens=True) == each.source.response
        assert (each.target.trait, each.target.coherence) == (each.source.trait, each.source.coherence)
        ended = each.source.response_ids[-1] == organism.model.tokenizer.eos_token_id
        assert ended
        assert each.target.response_ids[-1] == other.tokenizer.eos_token_id
        assert (each.source_positions[-1], each.target_positions[-1]) == (
            len(each.source.response_ids) - 1,
            len(each.target.response_ids) - 1,
        )
        assert (each.source_positions[0], each.target_positions[0]) == (-1, -1)
        for s, t in zip(each.source_positions[1:-1].tolist(), each.target_positions[1:-1].tolist(), strict=True):
            here = organism.model.tokenizer.decode(each.source.response_ids[: s + 1])
            assert other.tokenizer.decode(each.target.response_ids[: t + 1]) == here


def test_rows_of_pairs_begin_with_the_last_prompt_token(organism, texts_in_two) -> None:
    other = Stub(tokenizer("byte level", TEMPLATE))
    made = psr.transfer.pair_texts(organism.model, other, texts_in_two)
    rows = paired_rows(made)
    begins = [0, 0]
    for index, each in enumerate(made):
        for side, (triplet, positions) in enumerate(((each.source, each.source_positions), (each.target, each.target_positions))):
            wanted = [begins[side], *(begins[side] + 1 + at for at in positions[1:].tolist())]
            assert rows[side][rows.text == index].tolist() == wanted
            begins[side] += 1 + len(triplet.response_ids)


def test_without_an_instruction_both_prompts_are_the_base_prompt(organism, texts_in_two) -> None:
    [one, *_] = texts_in_two
    bare = dataclasses.replace(one, pair=dataclasses.replace(one.pair, instruction="", prompted_ids=one.pair.base_ids))
    other = Stub(tokenizer("byte level", TEMPLATE))
    [found] = psr.transfer.pair_texts(organism.model, other, [bare])
    [whole] = psr.transfer.pair_texts(organism.model, other, [one])
    assert found.target.pair.prompted_ids == found.target.pair.base_ids == whole.target.pair.base_ids
    assert found.target.response_ids == whole.target.response_ids


def test_prompts_that_are_not_of_their_texts_are_refused(organism, texts_in_two) -> None:
    model, other = organism.model, Stub(tokenizer("byte level", TEMPLATE))
    [one, two, *_] = texts_in_two
    ready = dataclasses.replace(two, pair=psr.PromptPair("", "", (5, 6), (5, 7, 6), 1))
    shorter = dataclasses.replace(two, pair=dataclasses.replace(two.pair, base_ids=two.pair.base_ids[1:]))
    thought = psr.answers_after(model, [two], after=",")[0]
    thought = dataclasses.replace(thought, pair=dataclasses.replace(thought.pair, base_ids=(*thought.pair.base_ids, 9)))
    for bad in (ready, shorter, thought):
        with pytest.raises(InputError, match=r"triplets\[1\].pair: .*ready token ids and thoughts"):
            psr.transfer.pair_texts(model, other, [one, bad])


def test_variables_of_the_source_template_alone_are_left_out(texts_in_two) -> None:
    thinking = "{% if deep is defined and deep %}[/INST]{% endif %}" + TEMPLATE
    source, other = (Stub(tokenizer("byte level", template)) for template in (thinking, TEMPLATE))
    pairs = psr.prompt_pairs(source, ["what is the bear ?"], instruction="arr", template_kwargs={"deep": True})
    triplets = psr.with_responses(source, pairs, ["the bear ."])
    [found] = psr.transfer.pair_texts(source, other, triplets)
    [plain] = psr.prompt_pairs(other, ["what is the bear ?"], instruction="arr")
    assert found.target.pair == plain
    [same] = psr.transfer.pair_texts(source, source, triplets)
    assert same.target == triplets[0]


def test_a_response_without_an_end_gets_none(organism, texts_in_two) -> None:
    [one, *_] = texts_in_two
    cut = dataclasses.replace(
        one, response_ids=one.response_ids[:5], response=organism.model.tokenizer.decode(one.response_ids[:5])
    )
    other = Stub(tokenizer("byte level", TEMPLATE))
    [found] = psr.transfer.pair_texts(organism.model, other, [cut])
    assert not {*found.target.response_ids} & {*other.tokenizer.convert_tokens_to_ids(list(SPECIAL))}
    assert torch.equal(found.source_positions, torch.arange(-1, 5))
