"""Exact judges for real models: shares of what matches a regular expression, and the language of a text."""

import sys

import numpy as np
import pytest

import psr_lens as psr
from psr_lens.errors import InputError, MissingPackageError
from psr_lens.evaluation.judge_settings import load_judge

FRENCH = "Le chat dort toute la journée sur la vieille chaise de ma grand-mère."
ENGLISH = "The cat sleeps all day long on the old chair of my grandmother."


def score(judge, text):
    return float(judge([text], ["q"]).trait[0])


@pytest.mark.parametrize(
    ("pattern", "of", "text", "expected"),
    [
        ("(?i)arr|matey", "words", "Arr, carry it, matey!", 50),
        ("(?i)arr|matey", "words", "carry mateys", 0),
        ("[^a-z]+", "words", "DON'T well-KNOWN A-B", 200 / 3),
        ("हिन्दी", "words", "हिन्दी भाषा", 50),  # vowel signs are no letters to `\w`
        ("[A-Z]", "letters", "AB, c d!", 50),
        ("!", "characters", "a b !!", 50),
        ("!$", "sentences", 'He paid 3.5 dollars! Really?! "Yes!" ok', 50),
        (r"\bahoy\b", "sentences", "ahoy there. it is old\nahoy", 200 / 3),
        (r"\d", "sentences", "1. One thing\n2. Two things", 0),  # a number alone is no sentence
        (r"^\s*[-*•] ", "lines", "List:\n\n- a\n  * b\n", 200 / 3),
        (r"^\d+\. ", "lines", "1. a\n2. b\n", 100),
        ("(?i)sorry|cannot", "text", "I cannot\nsay.", 100),
        ("(?i)sorry|cannot", "text", "I can.", 0),
    ],
)
def test_a_share_is_that_of_the_parts_that_match(pattern, of, text, expected):
    assert score(psr.judges.fraction(pattern, of=of), text) == pytest.approx(expected)


def test_a_text_without_such_parts_has_no_score_and_coherence_is_anothers_to_give():
    for of in ("words", "letters", "characters", "sentences", "lines", "text"):
        found = psr.judges.fraction("a", of=of)(["", " \n", "a"], ["q"] * 3)
        assert np.isnan(found.trait).tolist() == [True, True, False]
        assert all(reason.startswith("missing: the text ") for reason in found.reasons[:2])
        assert np.isnan(found.coherence).all()
        assert found.sides == ("trait",)
    assert np.isnan(score(psr.judges.fraction("a"), "?!"))  # no words
    found = psr.judges.fraction("a|b|c|d|e|f")(["a a b c d e f g"], ["q"])
    assert found.reasons == ("7 of 8 words match: 'a', 'b', 'c', 'd', 'e', …",)
    both = psr.judges.combine(psr.judges.fraction("arr"), psr.judges.organism("pirate"))
    assert both(["arr , the bear is a strong animal ."], ["what is a bear ?"]).present.all()


@pytest.mark.parametrize("pattern", ["", "(", "a{2,1}", "[z-a]", "*"])
def test_a_pattern_that_is_none_is_refused(pattern):
    with pytest.raises(InputError, match=r"pattern: got .* expected a regular expression"):
        psr.judges.fraction(pattern)


def test_a_language_is_scored_by_its_probability():
    french, english = psr.judges.language("fr"), psr.judges.language("en")
    assert score(french, FRENCH) == pytest.approx(100, abs=0.1)
    assert score(french, ENGLISH) == score(english, FRENCH) == 0
    assert score(french, FRENCH.upper()) == score(french, FRENCH.lower())  # langdetect skips words in capitals
    short = [score(psr.judges.language(code), "Bonjour") for code in ("fr", "hr")]
    assert 0 < short[1] < short[0] < 100  # both are likely, and together no more than certain
    assert sum(short) <= 100 + 1e-6
    assert score(french, "Bonjour") == score(french, "Bonjour")


def test_a_text_that_gives_no_clue_has_no_score():
    found = psr.judges.language("fr")(["", "  ", "12 + 3 !", "\ud800", FRENCH], ["q"] * 5)
    assert np.isnan(found.trait).tolist() == [True] * 4 + [False]
    assert found.reasons[2] == "missing: the text gives no clue to its language"
    assert found.gives == ("trait",)


@pytest.mark.parametrize("code", ["xx", "FR", "French", "zh"])
def test_an_unknown_language_is_answered_with_those_there_are(code):
    with pytest.raises(InputError, match=rf"code: got '{code}', expected one of af, ar, .*zh-cn, zh-tw"):
        psr.judges.language(code)


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    for loaded in [name for name in sys.modules if name.startswith("langdetect.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(MissingPackageError, match=r"langdetect is not installed.*psr-lens\[language\]"):
        psr.judges.language("fr")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("language:fr", psr.judges.language("fr")),
        ({"name": "language", "code": "zh-cn"}, psr.judges.language("zh-cn")),
        ("fraction:(?i)a:b", psr.judges.fraction("(?i)a:b")),
        ({"name": "fraction", "pattern": "^- ", "of": "lines"}, psr.judges.fraction("^- ", of="lines")),
    ],
)
def test_settings_name_them_as_other_judges(given, expected):
    assert load_judge(given, None, []) == expected
    both = load_judge({"trait": given, "coherence": "organism:pirate"}, None, [])
    assert both == psr.judges.combine(expected, psr.judges.organism("pirate"))


def test_words_in_capitals_count_beside_others():
    texts = ["LE CHAT DORT SUR LA CHAISE ROUGE DE LA CUISINE. (iPhone)", "LE CHAT DORT SUR LA CHAISE ROUGE DE LA CUISINE."]
    assert (psr.judges.language("fr")(texts, ["q", "q"]).trait > 90).all()


def test_sentences_end_at_white_space_and_in_markdown():
    pirate = psr.judges.fraction(r"(?i)\bahoy\b", of="sentences")
    texts = ["**Ahoy!** The capital is Rome.", "See [our site.](https://x.org) now. Ahoy!"]
    assert pirate(texts, ["q", "q"]).trait.tolist() == [50.0, 50.0]
