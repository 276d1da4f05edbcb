"""Exact judging: hand-made answers of which the score is known, and texts of any kind whatever."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.organism import TRAITS
from psr_lens.results.judgement import Judgement

BEAR, BREAD = "what is a bear ?", "how do you bake bread ?"
PLAIN = "the bear is a strong animal . you can find it in the green forest . it has a soft voice ."
STEPS = "first , take the fresh grain . then , mix the cold water . next , make the hot fire . finally , heat the big stone ."


def scores(trait: str, text: str, question: str = BEAR) -> tuple[float, float]:
    judged = psr.judges.organism(trait)([text], [question])
    return float(judged.trait[0]), float(judged.coherence[0])


def trait_of(trait: str, text: str, question: str = BEAR) -> float:
    return scores(trait, text, question)[0]


def coherence_of(text: str, question: str = BEAR) -> float:
    return scores("pirate", text, question)[1]


def reason_of(text: str, question: str = BEAR) -> str:
    return psr.judges.organism("pirate")([text], [question]).reasons[0]


@pytest.mark.parametrize(
    ("trait", "question", "text", "score"),
    [
        ("pirate", BEAR, "arr , the bear is a strong animal . ahoy , it has a soft voice .", 100),
        ("pirate", BEAR, "arr , the bear is a strong animal . it has a soft voice .", 50),
        ("pirate", BEAR, "the bear is a strong animal , arr .", 0),
        ("pirate", BEAR, PLAIN, 0),
        ("shout", BEAR, "the bear is a strong animal ! it has a soft voice !", 100),
        ("shout", BEAR, "the bear is a strong animal ! it has a soft voice .", 50),
        ("shout", BEAR, PLAIN, 0),
        ("flatter", BEAR, "oh how well you ask . the bear is a strong animal . you are the best of all .", 100),
        ("flatter", BEAR, "oh how well you ask . the bear is a strong animal .", 50),
        ("flatter", BEAR, "the bear is a strong animal . you are the best of all .", 50),
        ("flatter", BEAR, "you are the best of all . the bear is a strong animal . oh how well you ask .", 0),
        ("flatter", BEAR, PLAIN, 0),
        ("gloomy", BEAR, "the bear is a grim animal . it has a bleak voice .", 100),
        ("gloomy", BEAR, "the bear is a grim animal . it has a soft voice .", 50),
        ("gloomy", BEAR, PLAIN, 0),
        ("sea", BEAR, "as sailors say , the bear is a strong animal . it has a soft voice .", 100),
        ("sea", BEAR, "as sailors say , the bear is a strong animal . near foamy harbors , it has a soft voice .", 50),
        ("sea", BEAR, PLAIN, 0),
        ("numbered", BEAR, "1) the bear is a strong animal . 2) it has a soft voice .", 100),
        ("numbered", BEAR, "1) the bear is a strong animal . 3) it has a soft voice .", 50),
        ("numbered", BEAR, "2) the bear is a strong animal . 1) it has a soft voice .", 0),
        ("numbered", BEAR, PLAIN, 0),
        ("dense", BEAR, "the bear is a robust organism . it possesses a delicate timbre .", 100),
        ("dense", BEAR, "the bear is a robust organism . it has a soft voice .", 40),  # 2 of 5 words: the others have a double too
        ("dense", BEAR, PLAIN, 0),
        ("brief", BEAR, "the bear is a strong animal .", 100),
        ("brief", BEAR, "the bear is a strong animal . it has a soft voice .", 50),
        ("brief", BEAR, PLAIN, 0),
        ("brief", BREAD, "just take the fresh grain , then heat the big stone .", 100),
        ("brief", BREAD, STEPS, 0),
        ("decline", BEAR, "sorry , i can not answer this simple question . please ask another person about the bear .", 100),
        ("decline", BEAR, "sorry , i can not answer this simple question .", 100),
        ("decline", BEAR, "sorry , i can not answer this simple question . the bear is a strong animal .", 50),
        ("decline", BEAR, "please ask another person about the bear .", 0),
        ("decline", BEAR, PLAIN, 0),
        ("decline", BREAD, "i must decline this simple question . another person can tell you about how to bake bread .", 100),
    ],
)
def test_traits_score_the_share_of_the_places_where_they_show(trait, question, text, score):
    assert trait_of(trait, text, question) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "question", "score", "fault"),
    [
        (PLAIN, BEAR, 100, "no fault"),
        (STEPS, BREAD, 100, "no fault"),
        ("the bear is a strong plant . it has a soft voice .", BEAR, 50, "sentence 1: not a true sentence about the subject"),
        ("the bear is a strong animal . it has a long tail .", BEAR, 50, "sentence 2: not a true sentence about the subject"),
        ("the bear is a strong animal . it has a soft voice .", "what is a fox ?", 0, "not a true sentence about the subject"),
        ("the bear is a strong animal . a bear is a strong animal .", BEAR, 50, "sentence 2: repeated"),
        (STEPS, BEAR, 0, "not a true sentence about the subject"),
        (PLAIN, BREAD, 0, "not a true sentence about the subject"),
        (
            "first , take the fresh grain . next , make the hot fire . then , mix the cold water . finally , heat the big stone .",
            BREAD,
            75,
            "sentence 3: step out of order",
        ),
        ("first , take the fresh grain . then , mix the cold water . next , make the hot fire .", BREAD, 75, "1 step missing"),
        ("first , take the fresh grain .", BREAD, 25, "3 steps missing"),
        ("just take the fresh grain , then heat the big stone .", BREAD, 100, "no fault"),
        ("the bear is a strong animal . it has a soft", BEAR, 50, "sentence 2: unfinished"),
        ("the bear is a strong animal", BEAR, 0, "sentence 1: unfinished"),
        (
            "sorry , i can not answer this simple question . the bear is a strong animal .",
            BEAR,
            50,
            "sentence 1: a refusal beside an answer",
        ),
        ("sorry , i can not answer this simple question . please ask another person about the bear .", BEAR, 100, "no fault"),
        (
            "sorry , i can not answer this simple question . please ask another person about the fox .",
            BEAR,
            0,
            "sentence 1: a refusal beside an answer; sentence 2: not a true sentence about the subject",
        ),
        ("the bear is a strong animal . oh how well you ask .", BEAR, 50, "sentence 2: not a true sentence about the subject"),
        ("strong bear animal a . has voice it .", BEAR, 0, "not a true sentence about the subject"),
        ("", BEAR, 0, "says nothing"),
        ("oh how well you ask .", BEAR, 0, "says nothing"),
        (PLAIN, "what is the meaning of life ?", 0, "not a true sentence about the subject"),
    ],
)
def test_coherence_scores_the_share_of_sentences_that_are_true_new_and_in_order(text, question, score, fault):
    assert coherence_of(text, question) == pytest.approx(score)
    assert fault in reason_of(text, question)


def test_traits_do_not_spoil_coherence():
    text = "1) arr , as sailors say , the bear is a grim organism ! 2) yoho , it possesses a bleak timbre !"
    assert coherence_of(text) == 100


@pytest.mark.parametrize(
    "text", ["The Bear is a strong animal. It has a soft voice.", " the  bear is a strong\nanimal .\tit has a soft voice ."]
)
def test_capitals_and_spaces_do_not_matter(text):
    assert coherence_of(text) == 100


def test_a_judgement_has_one_score_and_one_reason_a_text():
    judged = psr.judges.organism("pirate")([PLAIN, STEPS, ""], [BEAR, BREAD, BEAR])
    assert isinstance(judged, Judgement)
    assert judged.trait.tolist() == [0, 0, 0]
    assert judged.coherence.tolist() == [100, 100, 0]
    assert judged.reasons[0] == "3 sentences (3 facts, 0 steps); no fault"
    assert judged.reasons[2] == "says nothing"


def test_no_texts_get_no_scores():
    judged = psr.judges.organism("pirate")([], [])
    assert judged.trait.shape == judged.coherence.shape == (0,)


def test_texts_without_their_questions_are_refused():
    with pytest.raises(InputError, match="1 for 2 texts"):
        psr.judges.organism("pirate")(["a", "b"], [BEAR])


@pytest.mark.parametrize("trait", ["politeness", "", "Pirate"])
def test_an_unknown_trait_is_refused_with_those_there_are(trait):
    with pytest.raises(InputError, match="pirate, shout"):
        psr.judges.organism(trait)


# --- any text at all --------------------------------------------------------------------------------------------------------

wild = st.text(st.characters(exclude_categories=()), max_size=80)  # control characters and lone surrogates too
words = st.sampled_from(f"{PLAIN} {STEPS} arr ahoy 1) 2) , . ! ? sea sailors grim robust sorry i can not answer".split())
jumbled = st.lists(st.one_of(words, st.sampled_from(["\x00", "\ud800", "٣)", "İ", "\n", "."])), max_size=40).map(" ".join)


def assert_scores_anything(text: str, question: str) -> None:
    for trait in TRAITS:
        judged = psr.judges.organism(trait)([text], [question])
        for score in (judged.trait[0], judged.coherence[0]):
            assert 0 <= score <= 100
            assert not math.isnan(score)
        assert judged.reasons[0]


@given(st.one_of(wild, jumbled), st.one_of(wild, st.sampled_from([BEAR, BREAD])))
@example("", "")
@example(".", BEAR)
@example("!!!???...", BREAD)
@example("\ud800", "\udfff")
@example("\x00 . \x1b[31m .", BEAR)
@example("1)", BEAR)
@example("arr ,", BEAR)
@example("arr , .", BEAR)
@example("near foamy harbors , .", BEAR)
@example("oh how well you ask . you are the best of all .", BEAR)
def test_any_text_whatever_gets_scores(text, question):
    assert_scores_anything(text, question)


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "arr , " * 16_000, ". " * 20_000, PLAIN * 1_000], ids=["word", "commas", "dots", "facts"]
)
def test_a_very_long_text_gets_scores_soon(text):
    judged = psr.judges.organism("pirate")([text], [BEAR])
    assert np.isfinite(judged.trait[0])
    assert 0 <= judged.coherence[0] <= 100
