"""The IFEval judge: which row a text answers, its scores and reasons, IFEval's four numbers, and judges put together."""

import numpy as np
import pytest

import psr_lens as psr
from psr_lens.datasets import IfevalRow, Instruction
from psr_lens.errors import InputError
from psr_lens.results.judgement import Judge, Judgement

NO_COMMA = Instruction("punctuation:no_comma")


def keyword(word: str) -> Instruction:
    return Instruction("keywords:existence", {"keywords": [word]})


def row(base: str, *instructions: Instruction, key: int = 1) -> IfevalRow:
    return IfevalRow(key, f"{base} So: {instructions}", base, instructions)


ROWS = [
    row("Write a haiku.", keyword("mom")),
    row("Write a haiku.", keyword("mother")),
    row("Name a city.", NO_COMMA),
    row("Name two cities.", NO_COMMA, keyword("Rome")),
]
BASES = [each.base for each in ROWS]
PROMPTED = [each.prompted for each in ROWS]
ANSWERS = ["my mom", "my mom", "Paris", "Rome, Paris"]


def test_the_judge_meets_the_protocol_and_scores_by_row_in_order():
    judge = psr.judges.ifeval(ROWS)
    assert isinstance(judge, Judge)
    for questions in (BASES, PROMPTED):
        judged = judge(ANSWERS, questions)
        assert judged.trait.tolist() == [100, 0, 100, 0]
        assert np.isnan(judged.coherence).all()
        assert judged.reasons == (
            "all instructions are followed",
            "keywords:existence: without 'mother'",
            "all instructions are followed",
            "punctuation:no_comma: 1 commas",
        )


def test_the_share_of_instructions_is_a_score_too():
    judged = psr.judges.ifeval(ROWS, score="share")(ANSWERS, BASES)
    assert judged.trait.tolist() == [100, 0, 100, 50]


def test_loose_scores_forgive_what_the_eight_versions_leave_out():
    rows = [row("Name a city.", NO_COMMA)] * 2
    answers, questions = ["Sure, here:\nParis", "Paris, Rome"], ["Name a city."] * 2
    assert psr.judges.ifeval(rows)(answers, questions).trait.tolist() == [0, 0]
    assert psr.judges.ifeval(rows, accuracy="loose")(answers, questions).trait.tolist() == [100, 0]


def test_rows_out_of_order_are_found_by_a_question_that_only_they_have():
    judge = psr.judges.ifeval(ROWS)
    assert judge(["Rome", "a, b"], ["Name two cities.", "Name a city."]).trait.tolist() == [100, 0]
    assert judge(["my mother"], [ROWS[1].prompted]).trait.tolist() == [100]
    assert judge([], []).trait.shape == (0,)


def test_rows_with_one_question_and_the_same_instructions_are_no_riddle():
    judge = psr.judges.ifeval([ROWS[2], ROWS[2], ROWS[0]])
    assert judge(["Paris"], ["Name a city."]).trait.tolist() == [100]


@pytest.mark.parametrize(
    ("texts", "questions", "message"),
    [
        (
            ["a"],
            ["Write a haiku."],
            r"questions\[0\]: got 'Write a haiku.', the prompt of rows with 2 different sets of instructions",
        ),
        (
            ANSWERS[::-1],
            BASES[::-1],
            r"questions\[2\]: .* Make the judge from exactly the rows that the texts answer, in the same order",
        ),
        (["a"], ["Name a river."], r"questions\[0\]: got 'Name a river.', expected a prompt of one of the judge's 4 rows"),
        (["a", "b"], ["Name a city."], "questions: got 1 for 2 texts"),
    ],
)
def test_texts_whose_row_cannot_be_told_are_an_error(texts, questions, message):
    with pytest.raises(InputError, match=message):
        psr.judges.ifeval(ROWS)(texts, questions)


def test_one_instruction_is_looked_for_in_every_text():
    judge = psr.judges.ifeval("keywords:existence", keywords=["mom"])
    judged = judge(["mom", "dad", "mom and dad"], ["anything", "anything", "something else"])
    assert judged.trait.tolist() == [100, 0, 100]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psr.judges.ifeval([]), "instructions: got an empty list.*read_ifeval"),
        (lambda: psr.judges.ifeval([{"prompt": "x"}]), r"instructions\[0\]: got a dict, expected an IfevalRow"),
        (lambda: psr.judges.ifeval([row("Name a city.")]), r"instructions\[0\]: got a row without an instruction"),
        (lambda: psr.judges.ifeval(ROWS, keywords=["a"]), "arguments: got keywords, expected none with rows"),
        (lambda: psr.judges.ifeval(ROWS, accuracy="lax"), "accuracy: got 'lax', expected 'strict' or 'loose'"),
        (lambda: psr.judges.ifeval(ROWS, score="most"), "score: got 'most', expected 'all' or 'share'"),
        (lambda: psr.judges.ifeval(ROWS)("text", "q"), "texts: got one text"),
        (
            lambda: psr.judges.ifeval([IfevalRow(1, "a", "b", (keyword("x"), Instruction("no:such")), {}, "f.jsonl, line 7")]),
            r"instructions\[0\]: got f.jsonl, line 7 \(instruction: got 'no:such'",
        ),
    ],
)
def test_a_judge_that_cannot_be_meant_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_the_four_numbers_are_counted_by_answer_and_by_instruction():
    answers = ["mom", "mom", "Sure, here:\nParis", "Rome, Paris"]
    measured = psr.judges.ifeval(ROWS).measure(answers, BASES)
    assert measured.prompt_strict == pytest.approx(100 * 1 / 4)
    assert measured.instruction_strict == pytest.approx(100 * 2 / 5)
    assert measured.prompt_loose == pytest.approx(100 * 2 / 4)
    assert measured.instruction_loose == pytest.approx(100 * 3 / 5)
    assert measured.n == 4
    assert np.isnan(psr.judges.ifeval(ROWS).measure([], []).prompt_strict)


def test_two_judges_are_put_together():
    def fluency(texts, questions):
        return Judgement(np.full(len(texts), np.nan), np.array([len(text) for text in texts], dtype=float), ("long",) * len(texts))

    judge = psr.judges.combine(trait=psr.judges.ifeval("punctuation:no_comma"), coherence=fluency)
    assert isinstance(judge, Judge)
    judged = judge(["a, b", "abc"], ["q", "q"])
    assert judged.trait.tolist() == [0, 100]
    assert judged.coherence.tolist() == [4, 3]
    assert judged.reasons[0] == "trait: punctuation:no_comma: 1 commas; coherence: long"


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_judge_is_not_put_together():
    with pytest.raises(InputError, match="coherence: got a value of type str, expected a judge"):
        psr.judges.combine(psr.judges.ifeval("punctuation:no_comma"), "perplexity")


def test_a_judge_filters_sampled_responses(organism):
    """A judge of the trait alone filters by the trait; together with one of coherence, by both."""
    pairs = psr.prompt_pairs(organism.model, psr.organism.questions(8), "end every sentence with an exclamation mark .")
    trait = psr.judges.ifeval("startend:end_checker", end_phrase=".")
    alone = psr.sample_responses(organism.model, pairs, trait)
    assert all(each.response.endswith(".") and each.coherence == 100 for each in alone)
    assert {each.reason for each in alone.dropped} <= {"without the trait"}
    both = psr.sample_responses(organism.model, pairs, psr.judges.combine(trait, psr.judges.organism("shout")))
    ends = [each.response.endswith(".") for each in (*both.kept, *both.dropped)]
    assert sum(ends) == len(both.kept)
    assert {each.reason for each in both.dropped} <= {"without the trait"}
