"""The organism: its grammar and vocabulary, its training, and what the shipped weights can do."""

import itertools
import random
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from helpers import ORGANISMS, Case

import psr_lens as psr
from psr_lens.generation.sampling import SamplingConfig
from psr_lens.organism import COUNTER_INSTRUCTIONS, INSTRUCTIONS, NEUTRAL_INSTRUCTIONS, TRAITS, all_questions, lexicon
from psr_lens.organism.grammar import Question, answer, dialogue, vocabulary
from psr_lens.organism.tokenizer import CONTEXT_LENGTH, SPECIAL_TOKENS, build_tokenizer
from psr_lens.organism.train import IGNORED, batches, train

EVERY_SET = [(), *((trait,) for trait in TRAITS), *itertools.combinations(TRAITS, 2)]


def some_questions(count: int = 4) -> list[Question]:
    """A few descriptions and as many procedures."""
    rng = random.Random(0)
    return [question for kind in ("description", "procedure") for question in rng.sample(all_questions(kind), count)]


# --- grammar and tokenizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("traits", EVERY_SET, ids=lambda traits: "+".join(traits) or "plain")
def test_any_two_traits_can_be_had_at_once_and_the_judge_scores_them_exactly(traits):
    rng = random.Random(1)
    judges = {trait: psr.judges.organism(trait) for trait in TRAITS}
    questions = some_questions() * 3
    texts = [answer(question, traits, rng) for question in questions]
    for trait, judge in judges.items():
        scores = judge(texts, [question.text for question in questions])
        assert set(scores.coherence) == {100.0}
        if trait in traits:
            assert set(scores.trait) == {100.0}
        elif trait == "brief" and "decline" in traits:
            assert set(scores.trait) == {50.0}  # a refusal has two sentences
        else:
            assert set(scores.trait) == {0.0}


def test_the_traits_and_their_instructions_are_many_and_differ():
    assert len(TRAITS) >= 9
    assert all(len(set(paraphrases)) >= 4 for paraphrases in INSTRUCTIONS.values())
    every = [text for paraphrases in INSTRUCTIONS.values() for text in paraphrases]
    assert len(set(every)) == len(every)
    assert not set(every) & {*NEUTRAL_INSTRUCTIONS, *COUNTER_INSTRUCTIONS}
    assert set(psr.organism.EASY_TRAITS) < set(TRAITS)


def test_the_world_is_small_but_not_tiny():
    assert 150 <= len(vocabulary()) <= 400
    assert len(lexicon.TOPICS) >= 24
    assert len(lexicon.TASKS) >= 10


def test_words_mean_one_thing():
    assert len(lexicon.PLAIN) == len(lexicon.DOUBLES)  # no two words share a scholarly double
    assert not set(lexicon.PLAIN) & set(lexicon.DOUBLES)
    assert not set(lexicon.GLOOMY) & {*lexicon.DOUBLES, *lexicon.PLAIN}
    assert not set(lexicon.TOPICS) & {*lexicon.DOUBLES, *lexicon.PLAIN}
    for topic in lexicon.TOPICS.values():
        assert topic.adjective in lexicon.ADJECTIVES
        assert topic.kind in lexicon.KINDS
        assert {topic.place, topic.feature, topic.object} <= set(lexicon.NOUNS)
        assert topic.verb in lexicon.VERBS
    for steps in lexicon.TASKS.values():
        assert len(set(steps)) == 4


def test_training_and_held_out_questions_are_disjoint_and_together_all():
    train_texts, held_out = ([question.text for question in all_questions(split=split)] for split in ("train", "held_out"))
    assert not set(train_texts) & set(held_out)
    assert sorted(train_texts + held_out) == sorted(question.text for question in all_questions())
    assert 0.2 < len(held_out) / (len(train_texts) + len(held_out)) < 0.4
    for kind in ("description", "procedure"):
        assert len(psr.organism.questions(split="held_out", kind=kind)) > 40


def test_every_subject_is_met_in_training():
    assert {question.subject for question in all_questions(split="train")} == {*lexicon.TOPICS, *lexicon.TASKS}


def test_questions_are_shuffled_by_their_seed_and_chosen_by_kind():
    assert psr.organism.questions(20, seed=1) == psr.organism.questions(20, seed=1)
    assert psr.organism.questions(20, seed=1) != psr.organism.questions(20, seed=2)
    procedures = {question.text for question in all_questions("procedure")}
    assert set(psr.organism.questions(kind="procedure", split="train")) < procedures
    assert not set(psr.organism.questions(kind="description")) & procedures


def test_counter_instructions_are_put_after_the_same_questions():
    plain, countered = (psr.organism.questions(8, counter=counter) for counter in (False, True))
    for question, with_counter in zip(plain, countered, strict=True):
        assert with_counter.startswith(f"{question} ")
        assert with_counter.removeprefix(f"{question} ") in COUNTER_INSTRUCTIONS


def test_the_tokenizer_knows_every_word_and_gives_every_text_back():
    tokenizer, rng = build_tokenizer(), random.Random(0)
    texts = [question.text for question in all_questions()]
    texts += [text for paraphrases in INSTRUCTIONS.values() for text in paraphrases] + [
        *NEUTRAL_INSTRUCTIONS,
        *COUNTER_INSTRUCTIONS,
    ]
    texts += [answer(question, traits, rng) for question in some_questions() for traits in EVERY_SET]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in ids
        assert " ".join(tokenizer.convert_ids_to_tokens(ids)) == text
        again = tokenizer(tokenizer.decode(ids), add_special_tokens=False).input_ids
        assert again == ids


def test_the_tokenizer_has_a_token_a_word_and_reads_capitals_and_punctuation():
    tokenizer = build_tokenizer()
    assert len(tokenizer) == len(SPECIAL_TOKENS) + len(vocabulary())
    assert tokenizer.tokenize("What is a Bear?") == ["what", "is", "a", "bear", "?"]
    assert tokenizer.tokenize("1) first, take it!") == ["1)", "first", ",", "take", "it", "!"]
    assert tokenizer.tokenize("zebra") == ["<unk>"]


def test_the_chat_template_marks_roles_and_ends_messages():
    messages = [
        {"role": role, "content": text} for role, text in (("system", "be brief ."), ("user", "hey"), ("assistant", "aye ."))
    ]
    render = build_tokenizer().apply_chat_template
    assert render(messages, tokenize=False) == "<bos><system> be brief . <end><user> hey <end><assistant> aye . <end>"
    assert render(messages[:2], tokenize=False, add_generation_prompt=True).endswith("<user> hey <end><assistant>")


def test_every_dialogue_fits_the_context():
    tokenizer, rng, questions = build_tokenizer(), random.Random(0), all_questions()
    longest = 0
    for _ in range(400):
        drawn = dialogue(rng, questions)
        longest = max(longest, len(tokenizer.tokenize(f"{drawn.instruction or ''} {drawn.question} {drawn.answer}")) + 8)
    assert longest < CONTEXT_LENGTH


def test_an_unknown_trait_in_an_answer_is_refused():
    with pytest.raises(ValueError, match="polite"):
        answer(all_questions()[0], ["polite"], random.Random(0))


# --- training ---------------------------------------------------------------------------------------------------------------


def test_training_batches_have_labels_on_the_answers_only_and_never_a_held_out_question():
    tokenizer = build_tokenizer()
    held_out = {question.text for question in all_questions(split="held_out")}
    user, assistant = tokenizer.convert_tokens_to_ids(["<user>", "<assistant>"])
    for inputs, labels in itertools.islice(batches(tokenizer, 16, seed=0), 6):
        for row, wanted in zip(inputs.tolist(), labels.tolist(), strict=True):
            at = row.index(assistant) + 1
            assert wanted[:at] == [IGNORED] * at
            length = row.index(tokenizer.eos_token_id, at) + 1
            assert wanted[at:length] == row[at:length]
            assert set(wanted[length:]) <= {IGNORED}
            asked = " ".join(tokenizer.convert_ids_to_tokens(row[row.index(user) + 1 : at - 2]))
            assert not any(asked == question or asked.startswith(f"{question} ") for question in held_out)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_is_deterministic(family):
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return train(family, 3, 4, 2e-3, seed, progress=False).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_training_lowers_the_loss():
    tokenizer = build_tokenizer()
    inputs, labels = next(batches(tokenizer, 16, seed=5))

    def loss(steps: int) -> float:
        model = train("llama", steps, 8, 2e-3, 0, progress=False)
        with torch.no_grad():
            logits = model(inputs).logits[:, :-1]
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED))

    assert loss(15) < loss(1) - 1.0


# --- the shipped weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ORGANISMS)
def test_shipped_files_are_small_and_safe(folders, family):
    names = {path.name for path in folders[family].iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert (folders[family] / "model.safetensors").stat().st_size <= 6 * 2**20


def test_the_shipped_tokenizer_is_the_one_that_is_built(shipped):
    built = build_tokenizer()
    assert shipped.model.tokenizer.get_vocab() == built.get_vocab()
    assert shipped.model.tokenizer.chat_template == built.chat_template
    assert shipped.model.cfg.n_ctx == CONTEXT_LENGTH


class Answers:
    """What one organism says to a set of questions under every trait, without and against it; sampled once, in few batches."""

    def __init__(self, case: Case, count: int = 12) -> None:
        kinds = ("description", "procedure")
        self.questions = [
            question for kind in kinds for question in psr.organism.questions(count, split="held_out", kind=kind, seed=3)
        ]
        self.countered = [
            f"{question} {COUNTER_INSTRUCTIONS[place % len(COUNTER_INSTRUCTIONS)]}" for place, question in enumerate(self.questions)
        ]
        pairs, self.places = [], {}
        for trait in TRAITS:
            for name, questions in (("with", self.questions), ("against", self.countered)):
                self.places[trait, name] = slice(len(pairs), len(pairs) + len(questions))
                pairs += psr.prompt_pairs(case.model, questions, INSTRUCTIONS[trait])
        config = SamplingConfig(max_new_tokens=90, seed=7)
        self.steered = [response.text for response in psr.generate(case.model, pairs, context="prompted", sampling=config)]
        without = psr.prompt_pairs(case.model, self.questions, INSTRUCTIONS[TRAITS[0]])
        self.plain = [response.text for response in psr.generate(case.model, without, sampling=config)]

    def scores(self, trait: str, name: str) -> tuple[float, float]:
        """Mean trait and coherence."""
        texts: Sequence[str] = self.plain if name == "without" else self.steered[self.places[trait, name]]
        judged = psr.judges.organism(trait)(texts, self.questions)
        return float(judged.trait.mean()), float(judged.coherence.mean())


@pytest.fixture(scope="module")
def answers(load):
    return cache(lambda family: Answers(load(family, "bridge")))


@pytest.mark.slow
@pytest.mark.parametrize("family", ORGANISMS)
@pytest.mark.parametrize("trait", TRAITS)
def test_an_instruction_brings_the_trait_out_on_questions_never_seen(answers, family, trait):
    score, coherence = answers(family).scores(trait, "with")
    assert score >= 95
    assert coherence >= 95


@pytest.mark.slow
@pytest.mark.parametrize("family", ORGANISMS)
@pytest.mark.parametrize("trait", TRAITS)
def test_without_the_instruction_the_trait_is_absent(answers, family, trait):
    score, coherence = answers(family).scores(trait, "without")
    assert score <= 5
    assert coherence >= 95


@pytest.mark.parametrize("family", ORGANISMS)
@pytest.mark.parametrize("trait", TRAITS)
def test_a_counter_instruction_is_obeyed(answers, family, trait):
    score, coherence = answers(family).scores(trait, "against")
    assert score <= 10
    assert coherence >= 90
