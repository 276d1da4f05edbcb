"""Random and hostile texts through every offline judge: no crash, scores from 0 to 100 or missing, in bounded time.

Two thousand texts, and ten thousand with `PSR_LENS_FUZZ=full` in the environment.
"""

import os
import random
import time

import numpy as np
import pytest
from more_ifeval_texts import IN_THE_FILES, OTHERS

import psr_lens as psr
from psr_lens.judges.ifeval_checks import CHECKS
from psr_lens.organism import TRAITS

pytestmark = pytest.mark.slow

FULL = os.environ.get("PSR_LENS_FUZZ") == "full"
"""More texts, and each of them through every judge; otherwise the slow judges get only some of them."""
TEXTS = 10_000 if FULL else 2_000
LANGUAGES = 100
"""Random texts whose language is detected: langdetect takes several milliseconds for each."""

LONG, LONGEST = 20_000, 100_000
REPEATED = [
    *"*[]<>{}()\"'.-,#@`_ \n\t\r\0\\a1Aé",
    *(
        "**",
        "***",
        "<<",
        ">>",
        "[*",
        "* ",
        "*\n",
        "- ",
        " \n",
        "\n\n",
        ". ",
        "a.",
        "?! ",
        "[[",
        "]]",
        "{[",
        '{"a":',
        "<<a",
        "p.s",
        "p. ",
    ),
    *(
        "Section 1 ",
        "mom ",
        "CAN'T ",
        "My answer is ",
        "\u202e",
        "\ud800",
        "\0\u200b",
        "漢字",
        "🙂",
        "a*",
        "[a",
        "x@",
        "http://",
        '"a" ',
    ),
]
"""Pieces that are hostile when repeated: many patterns read them more than once."""

WORST = ["[", "<<", " ", "\n", "* ", "a.", "a"]
"""Pieces that are hostile at full length."""

PIECES = [
    *("the bear is a strong animal .", "arr , ", "mom", "MOM", "can", "BC", "Section 1", "SECTION 2", "P.S.", "p. p. s"),
    *("My answer is yes.", "\n", "\n\n", " ", "\t", "*", "**", "***", "******", "<<", ">>", "[", "]", '"', "'", "```json\n", "```"),
    *('{"a": [1, {"b": null}]}', "- ", "* ", "\u202eright to left\u202c", "שלום", "مرحبا", "ಕನ್ನಡ", "\ud83d", "\udc00", "\x00"),
    *("\x1b[0m", "\ufeff", "é", "ß", "İ", "ǅ", "1", "1e999", "NaN"),
]


def texts() -> list[str]:
    """Long texts of one repeated piece, and random texts of pieces or of arbitrary characters; the same in every run."""
    rng = random.Random(0)
    long = ["", *(f"a{piece * (LONG // len(piece))}b" for piece in REPEATED), *(piece * (LONGEST // len(piece)) for piece in WORST)]
    short = []
    while len(short) < TEXTS - len(long):
        if rng.random() < 0.7:
            some = rng.sample(PIECES, 4)
            short.append("".join(rng.choice(some) for _ in range(rng.randrange(12))))
        else:
            widest = rng.choice((0x80, 0x800, 0x10000, 0x110000))
            short.append("".join(chr(rng.randrange(widest)) for _ in range(rng.randrange(40))))
    return long + short


@pytest.fixture(scope="module")
def hostile() -> list[str]:
    found = texts()
    assert len(found) == TEXTS
    return found


DETECT = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")
"""The instructions that detect the language."""

HOSTILE = 1 + len(REPEATED) + len(WORST)
"""Number of texts at the start that are not random."""


def assert_scores(scores: np.ndarray, count: int, *, missing: bool = False) -> None:
    assert len(scores) == count
    assert (np.isnan(scores) | ((scores >= 0) & (scores <= 100))).all()
    assert missing or not np.isnan(scores).any()


CASES = {case.instruction: case.arguments for case in IN_THE_FILES + OTHERS}


@pytest.mark.parametrize("instruction", list(CHECKS))
def test_every_ifeval_check_takes_any_text(instruction, hostile):
    judge = psr.judges.ifeval(instruction, **CASES[instruction])
    chosen = hostile[:HOSTILE] + hostile[-LANGUAGES:] if instruction in DETECT and not FULL else hostile
    started = time.process_time()
    judged = judge(chosen, ["q"] * len(chosen))
    assert_scores(judged.trait, len(chosen))
    assert np.isnan(judged.coherence).all()
    assert max(map(len, judged.reasons)) < 400
    assert time.process_time() - started < (600 if FULL else 60)  # a second or so; a backtracking pattern would take hours


@pytest.mark.parametrize(
    "instruction", ["detectable_format:number_bullet_lists", "detectable_format:title", "punctuation:no_comma"]
)
def test_the_loose_versions_of_long_texts_take_no_longer(instruction):
    judge = psr.judges.ifeval(instruction, accuracy="loose", **CASES[instruction])
    assert_scores(judge(["*\n" * LONG, "<<" * LONG, "a\n" * LONG], ["q"] * 3).trait, 3)


def test_the_organisms_judge_takes_any_text(hostile):
    for number, trait in enumerate(TRAITS):
        # Parsing is the same for all: each random text goes to one trait, some long ones to the first.
        chosen = hostile if FULL else hostile[HOSTILE + number :: len(TRAITS)] + (hostile[:HOSTILE:6] if number == 0 else [])
        judged = psr.judges.organism(trait)(chosen, ["what is a bear ?"] * len(chosen))
        assert_scores(judged.trait, len(chosen))
        assert_scores(judged.coherence, len(chosen))


def test_any_text_may_be_the_question_too(hostile):
    random_ones = hostile[HOSTILE:]
    judged = psr.judges.organism("pirate")(["arr , yes ."] * len(random_ones), random_ones)
    assert_scores(judged.coherence, len(random_ones))


@pytest.mark.parametrize("of", ["words", "letters", "characters", "sentences", "lines", "text"])
def test_fractions_take_any_text(of, hostile):
    judged = psr.judges.fraction("[a-z]+", of=of)(hostile, ["q"] * len(hostile))
    assert_scores(judged.trait, len(hostile), missing=True)
    assert max(map(len, judged.reasons)) < 400


def test_a_language_may_be_asked_of_any_text(hostile):
    chosen = hostile[:HOSTILE:4] + hostile[-LANGUAGES // 2 :]
    assert_scores(psr.judges.language("en")(chosen, ["q"] * len(chosen)).trait, len(chosen), missing=True)


def test_perplexity_takes_any_text(hostile, organism):
    [pair] = psr.prompt_pairs(organism.model, ["what is a bear ?"], "talk like a pirate .")
    judge = psr.judges.perplexity(organism.model, [pair], ["a bear is a strong animal. you can find it in the green forest."])
    chosen = hostile if FULL else hostile[:HOSTILE:8] + hostile[-100:]
    judged = judge(chosen, [pair.question] * len(chosen))
    assert_scores(judged.coherence, len(chosen), missing=True)
    assert np.isnan(judged.coherence[0])
    assert np.isfinite(judged.coherence).sum() > 50
