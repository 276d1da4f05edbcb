"""From a reply to a score: the number that was written, the weights of the likeliest tokens, and any text whatever."""

import math
import os
import random
import time

import pytest
from chat_server import completion, tops

from psr_lens.judges.llm_judge.number_in_reply import read_number
from psr_lens.judges.llm_judge.reply import MalformedReplyError, Reply


def reply_of(text, **options) -> Reply:
    return Reply.from_completion(completion(text, **options).body)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("85", 85),
        ("85.", 85),
        ("85!", 85),
        ("85%", 85),
        (" 85\n", 85),
        ("+85", 85),
        ("85.5", 85.5),
        ("0", 0),
        ("-0", 0),
        ("100", 100),
        ("0.85", 0.85),
        ("８５", 85),
        ("**85**", 85),
        ("_85_", 85),
        ("<score>85</score>", 85),
        ("85/100", 85),
        ("85 / 100.", 85),
        ("**85**/100", 85),
        ("85 (out of 100)", 85),
        ("100/100", 100),
        ("I'd say 85 out of 100", 85),
        ("Score: 85", 85),
        ("**Score:** 85/100", 85),
        ("The rating is 85.", 85),
        ('{"score": 85}', 85),
        ("On a scale of 0-100: 85", 85),
        ("On a scale from 0 to 100, 85", 85),
        ("3 metaphors. Score: 85", 85),
        ("4 of 5 sentences are fine: 85/100", 85),
        ("85\n\n85", 85),
        ("This is no refusal: 85", 85),
        ("<think>perhaps 30, or 40?</think>\n85", 85),
    ],
)
def test_a_number_is_read(text, score):
    found = read_number(text)
    assert found.score == score
    assert math.copysign(1, found.score) == 1
    assert text[found.start : found.end].translate(str.maketrans("８５", "85")) == found.digits


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("REFUSAL", "is a refusal"),
        (" REFUSAL", "is a refusal"),
        ("**refusal**.", "is a refusal"),
        ("REFUSAL, but else 85", "is a refusal"),
        ("-5", "is outside 0–100"),
        ("−5", "is outside 0–100"),
        ("101", "is outside 0–100"),
        ("100.01", "is outside 0–100"),
        ("9" * 5_000, "is outside 0–100"),
        ("1e9", "has no plain number"),
        ("1e1", "has no plain number"),
        ("1,000", "has no plain number"),
        ("85,5", "has no plain number"),
        ("1.2.3", "has no plain number"),
        ("8/10", "is on another scale"),
        ("Score: 4 out of 5", "is on another scale"),
        ("80-90", "more than one number"),
        ("80 or 90", "more than one number"),
        ("eighty-five", "has no number"),
        ("٨٥", "has no number"),
        ("85th", "has no number"),
        ("85²", "has no number"),
        ("½", "has no number"),
        (".5", "has no number"),
        ("nan", "has no number"),
        ("inf", "has no number"),
        ("<think>30 or 40", "in the middle of its reasoning"),
    ],
)
def test_what_is_no_score_is_missing_with_the_reason_and_never_0(text, reason):
    found = read_number(text)
    assert math.isnan(found.score)
    assert reason in found.reason
    assert len(found.reason) < 200


PIECES = [
    *"0123456789.,-+−/%eE*_`'\"()[]{}<>:=\n\t \x00",
    "85",
    "100",
    "1e9",
    "８",
    "٣",
    "½",
    "²",
    "\ud800",
    "😀",
    "REFUSAL",
    "score",
    "of",
]
PIECES += ["out of", "to", "0-100", "<think>", "</think>", "rating is", "nan", "inf", "9" * 40]


TEXTS = 10_000 if os.environ.get("PSR_LENS_FUZZ") == "full" else 2_000


def wild(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return "".join(chr(rng.choice((rng.randrange(0x80), rng.randrange(0x110000)))) for _ in range(rng.randrange(30)))
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(25)))


def test_any_text_whatever_gives_a_score_within_range_or_none():
    rng = random.Random(5)
    scored = 0
    for _ in range(TEXTS):
        text = wild(rng)
        reply = Reply(text, rng.choice(("stop", "length")), rng.choice((None, (), ((20, 0.5), (90, 0.3)))), rng.random() < 0.5)
        score, reason = reply.score()
        number = read_number(text)
        for value in (score, number.score):
            assert math.isnan(value) or 0 <= value <= 100, text
        assert reason
        assert "missing" in number.reason or not math.isnan(number.score), text
        scored += not math.isnan(number.score)
    assert 0.05 * TEXTS < scored < 0.95 * TEXTS  # both kinds were tried


@pytest.mark.parametrize(
    ("text", "score", "reason"),
    [
        ("85 " * 20_000, 85, "read from '85 85"),
        ("85" + "\n" * 100_000, 85, "read from '85'"),
        ("\n" * 100_000, math.nan, "is empty"),
        ("(" * 100_000, math.nan, "has no number"),
        ("1 of " * 20_000, math.nan, "is on another scale"),
        ("<think>" * 20_000, math.nan, "in the middle of its reasoning"),
        ("<think>" + "5 " * 20_000 + "</think>85", 85, "read from"),
        ("9" * 100_000 + "x", math.nan, "has no number"),
        ("9," * 50_000 + "x", math.nan, "has no plain number"),
        ("score " * 20_000 + "85", 85, "read from"),
    ],
)
def test_a_very_long_reply_is_read_soon_and_rightly(text, score, reason):
    started = time.process_time()
    found = read_number(text)
    assert time.process_time() - started < 10  # a tenth of a second; a backtracking pattern would take minutes or hours
    assert found.score == pytest.approx(score, nan_ok=True)
    assert reason in found.reason
    assert len(found.reason) < 200


# --- weighted by probabilities ----------------------------------------------------------------------------------------------


def test_the_score_is_the_mean_of_the_likeliest_numbers_weighted_by_their_probabilities():
    likely = {"80": 0.5, "90": 0.25, " 90": 0.05, "the": 0.1, "101": 0.05, "-3": 0.03, "007": 0.02}
    score, reason = reply_of("80", logprobs=tops(("80", likely))).score()
    assert score == pytest.approx((80 * 0.5 + 90 * 0.3) / 0.8)
    assert "0.80" in reason


@pytest.mark.parametrize(("mass", "scored"), [(0.24, False), (0.26, True)])
def test_with_too_little_probability_on_numbers_the_score_is_missing(mass, scored):
    for text, first, second in (("REFUSAL", "REF", "USAL"), ("50", "50", "")):
        score, _ = reply_of(text, logprobs=tops((first, {"50": mass, "REF": 1 - mass}), (second, {second: 1.0}))).score()
        assert math.isnan(score) != scored
        assert not scored or score == pytest.approx(50)


def test_where_digits_are_tokens_the_number_is_read_from_the_text():
    digits = tops(("8", {"8": 0.6, "9": 0.4}), ("5", {"5": 0.9, "0": 0.1}))
    assert reply_of("85", logprobs=digits).score()[0] == 85
    one = tops(("5", {"5": 0.4, "8": 0.35, "9": 0.25}))  # "8" would have gone on to 85
    assert reply_of("5", logprobs=one).score()[0] == 5
    refusal = tops(("REFUSAL", {"REFUSAL": 0.5, "8": 0.5}))
    assert math.isnan(reply_of("REFUSAL", logprobs=refusal).score()[0])


def test_the_weights_are_taken_where_the_number_stands():
    said = tops(("Score", {"Score": 1.0}), (":", {":": 1.0}), (" 85", {" 85": 0.5, " 75": 0.5}), ("/100", {"/100": 1.0}))
    assert reply_of("Score: 85/100", logprobs=said).score()[0] == pytest.approx(80)
    decimal = tops(("85", {"85": 0.5, "75": 0.5}), (".5", {".5": 1.0}))
    assert reply_of("85.5", logprobs=decimal).score()[0] == 85.5


def test_a_number_that_may_go_on_is_missing_where_the_reply_was_cut_off():
    assert math.isnan(reply_of("8", finish="length").score()[0])
    assert math.isnan(reply_of("I think that", finish="length").score()[0])
    assert "max_tokens" in reply_of(None, finish="length").score()[1]
    assert reply_of("85 because", finish="length").score()[0] == 85
    # One whole token a number, as persona_vectors asks for them: nothing can be missing.
    assert reply_of("85", finish="length", logprobs=tops(("85", {"85": 0.9, "80": 0.1}))).score()[0] == pytest.approx(84.5)


@pytest.mark.parametrize("logprob", [float("nan"), float("inf"), 3, "x", None, True, -1e9, -(10**400)])
def test_odd_probabilities_do_no_harm(logprob):
    body = completion("85", logprobs=tops(("85", {"85": 0.9}))).body
    body["choices"][0]["logprobs"]["content"][0]["top_logprobs"].append({"token": "20", "logprob": logprob})
    assert Reply.from_completion(body).score()[0] == pytest.approx(85)


@pytest.mark.parametrize("logprobs", [{}, {"content": None}, {"content": []}, {"content": [3]}, [], "x", {"content": [{}]}])
def test_logprobs_of_another_form_are_none(logprobs):
    assert reply_of("85", logprobs=logprobs).score()[0] == 85


@pytest.mark.parametrize(
    "body", [None, [], "85", 3, {}, {"choices": None}, {"choices": []}, {"choices": [3]}, {"choices": [{"message": 3}]}]
)
def test_a_body_that_is_no_completion_is_malformed(body):
    with pytest.raises(MalformedReplyError):
        Reply.from_completion(body)


def test_a_models_own_refusal_and_answers_in_parts_are_understood():
    body = completion(None).body
    body["choices"][0]["message"]["refusal"] = "I cannot"
    assert "refused" in Reply.from_completion(body).score()[1]
    assert reply_of([{"type": "text", "text": "8"}, {"type": "text", "text": "5"}]).score()[0] == 85


def test_a_reply_survives_json_and_its_lone_surrogates_do_not():
    reply = reply_of("85 \ud800 \x00", logprobs=tops(("85", {"85": 0.7, "20": 0.2})))
    assert reply.text == "85 � �"
    assert Reply.from_json(reply.to_json()) == reply
