"""IFEval's instructions against texts written by hand, and against verdicts of the original code."""

import json
import sys
from pathlib import Path

import pytest
from ifeval_texts import Case
from more_ifeval_texts import IN_THE_FILES, OTHERS

import psr_lens as psr
from psr_lens.errors import InputError, MissingPackageError
from psr_lens.judges.ifeval_checks import CHECKS, check_for
from psr_lens.judges.ifeval_judge import Verdict, versions

RECORDED = Path(__file__).parents[1] / "data" / "ifeval_original.jsonl"


def verdict(instruction: str, text: str, **arguments) -> Verdict:
    [[found]] = psr.judges.ifeval(instruction, **arguments).verdicts([text], ["q"])
    return found


def _each(kind: str) -> list:
    return [
        pytest.param(case, text, id=f"{case.instruction.partition(':')[2]}-{number}")
        for case in IN_THE_FILES + OTHERS
        for number, text in enumerate(getattr(case, kind))
    ]


@pytest.mark.parametrize(("case", "text"), _each("follows"))
def test_a_text_that_follows_is_found_to(case: Case, text: str):
    found = verdict(case.instruction, text, **case.arguments)
    assert found == Verdict(case.instruction, True, True, "")


@pytest.mark.parametrize(("case", "text"), _each("fails"))
def test_a_text_that_does_not_follow_is_told_why(case: Case, text: str):
    found = verdict(case.instruction, text, **case.arguments)
    assert not found.strict
    assert found.fault


def test_there_are_ten_texts_of_each_kind_for_every_instruction_of_the_files_and_some_for_all_25():
    assert len(CHECKS) == 25
    assert {case.instruction for case in IN_THE_FILES + OTHERS} == set(CHECKS)
    for kind in ("follows", "fails"):
        for name in {case.instruction for case in IN_THE_FILES}:
            assert sum(len(getattr(case, kind)) for case in IN_THE_FILES if case.instruction == name) >= 10, name


def test_every_verdict_is_that_of_the_original_code():
    """Recorded from google-research's instruction_following_eval (as lm-evaluation-harness 0.4.13 ships it), langdetect's seed 0."""
    rows = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    assert {row["instruction"] for row in rows} == set(CHECKS)
    assert {(row["strict"], row["loose"]) for row in rows} == {(True, True), (False, True), (False, False)}
    for row in rows:
        found = verdict(row["instruction"], row["text"], **row["arguments"])
        assert (found.strict, found.loose) == (row["strict"], row["loose"]), row


@pytest.mark.parametrize(
    ("instruction", "text", "arguments"),
    [
        ("startend:quotation", 'Here it is:\n"All of it."', {}),  # without the first line
        ("startend:end_checker", "Peace!\nHope this helps.", {"end_phrase": "Peace!"}),  # without the last line
        ("detectable_format:json_format", 'Sure:\n{"a": 1}\nDone.', {}),  # without both
        ("startend:end_checker", "**Peace!**", {"end_phrase": "Peace!"}),  # without asterisks
        ("startend:quotation", 'Here:\n*"All of it."*', {}),  # without the first line and asterisks
        ("startend:end_checker", "**Peace!**\nBye.", {"end_phrase": "Peace!"}),  # without the last line and asterisks
        ("startend:quotation", 'Here:\n*"All of it."*\nBye.', {}),  # without both and asterisks
        ("punctuation:no_comma", "Sure, here it is:\nno such mark", {}),
    ],
)
def test_the_loose_accuracy_forgives_a_first_line_a_last_line_and_asterisks(instruction, text, arguments):
    found = verdict(instruction, text, **arguments)
    assert (found.strict, found.loose) == (False, True)


def test_the_loose_accuracy_never_counts_an_empty_rest_as_followed():
    assert not verdict("punctuation:no_comma", "a, b").loose  # without its only line nothing is left
    assert not verdict("punctuation:no_comma", "").strict
    assert not verdict("punctuation:no_comma", " \n ").loose
    assert verdict("punctuation:no_comma", "***").strict


def test_the_eight_versions():
    assert set(versions("*a*\n b \nc")) == {"*a*\n b \nc", "b \nc", "*a*\n b", "b", "a\n b \nc", "a\n b"}
    assert len(list(versions("*1*\n*2*\n*3*"))) == 8
    assert next(iter(versions("*x*"))) == "*x*"


def test_a_language_is_the_same_every_time_and_langdetect_is_left_alone():
    import langdetect

    langdetect.DetectorFactory.seed = None
    text = "no la casa de the house ist"  # mixed, so that langdetect's random draws matter
    found = {verdict("language:response_language", text, language="en").fault for _ in range(20)}
    assert len(found) == 1
    assert langdetect.DetectorFactory.seed is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("instruction", "arguments", "message"),
    [
        ("keywords:existance", {}, "instruction: got 'keywords:existance', expected one of keywords:existence, "),
        ("keywords:existence", {}, "arguments of keywords:existence: got no arguments, expected keywords"),
        ("punctuation:no_comma", {"commas": 2}, "got commas, expected none"),
        ("keywords:existence", {"keywords": "mom"}, "keywords: got 'mom', expected a list"),
        ("keywords:existence", {"keywords": []}, r"keywords: got \[\]"),
        ("keywords:forbidden_words", {"forbidden_words": ["a", 3]}, "forbidden_words: got 3, expected a non-empty text"),
        ("detectable_format:number_bullet_lists", {"num_bullets": "3"}, "num_bullets: got '3', expected a whole number"),
        ("detectable_format:number_bullet_lists", {"num_bullets": True}, "num_bullets: got True"),
        ("detectable_format:number_bullet_lists", {"num_bullets": -1}, "num_bullets: got -1"),
        ("detectable_format:number_bullet_lists", {"num_bullets": float("nan")}, "num_bullets: got nan"),
        ("detectable_format:number_bullet_lists", {"num_bullets": 2.5}, "num_bullets: got 2.5"),
        (
            "length_constraints:number_words",
            {"num_words": 3, "relation": "at most"},
            "relation: got 'at most', expected 'less than'",
        ),
        ("language:response_language", {"language": "English"}, "language: got 'English', expected one of af, ar, "),
        ("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"}, "letter: got 'ab'"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
            "nth_paragraph: got 3, expected from 1 to num_paragraphs, 2",
        ),
    ],
)
def test_an_instruction_that_cannot_be_meant_is_refused(instruction, arguments, message):
    with pytest.raises(InputError, match=message):
        psr.judges.ifeval(instruction, **arguments)


def test_whole_numbers_may_be_written_as_floats_as_some_tables_have_them():
    assert verdict("detectable_format:number_bullet_lists", "* a\n* b", num_bullets=2.0).strict


@pytest.mark.parametrize(
    ("instruction", "module"),
    [
        ("change_case:english_capital", "langdetect"),
        ("change_case:capital_word_frequency", "punkt"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(instruction, module, monkeypatch):
    from psr_lens.judges import ifeval_text

    ifeval_text._sentences.cache_clear()
    for loaded in [name for name in sys.modules if name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    arguments = {"capital_frequency": 1, "capital_relation": "at least"} if "word" in instruction else {}
    with pytest.raises(MissingPackageError, match=rf"{module} is not installed.*psr-lens\[ifeval\]"):
        check_for(instruction, arguments)
    assert check_for("punctuation:no_comma", {})("a b") == ""  # the others need nothing
