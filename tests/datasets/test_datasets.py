"""Readers: what a file says comes out whole, and what is wrong with one is named by file and line."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

import psr_lens as psr
from psr_lens.datasets import PairLine
from psr_lens.errors import InputError

DATA = Path(__file__).parents[3] / "shared" / "data"
"""Sample files of the benchmarks, kept beside the repository where there are any."""

published = pytest.mark.skipif(not DATA.is_dir(), reason=f"the sample files are not in {DATA}")


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


# --- the published files ----------------------------------------------------------------------------------------------------


@published
@pytest.mark.parametrize(
    ("name", "count", "prompts", "not_a_part", "scores"),
    [("instr_format", 163, 163, 64, {0, 100}), ("keyword_exclude", 117, 49, 0, {0}), ("keyword_include", 86, 39, 0, {100})],
)
def test_the_ifeval_files_are_read_without_loss_and_their_instructions_are_known(name, count, prompts, not_a_part, scores):
    path = DATA / f"ifeval_single_{name}.jsonl"
    rows = psr.datasets.read_ifeval(path)
    assert len(rows) == count
    assert len({row.base for row in rows}) == prompts
    assert sum(row.base not in row.prompted for row in rows) == not_a_part
    for row, line in zip(rows, lines_of(path), strict=True):
        again = {
            "key": row.key,
            "prompt": row.prompted,
            "prompt_without_instruction": row.base,
            "instruction_id_list": [each.id for each in row.instructions],
            "kwargs": [each.arguments for each in row.instructions],
        }
        assert again | row.rest == line
    parrot = psr.judges.ifeval(rows)([row.prompted for row in rows], [row.base for row in rows])
    assert set(parrot.trait) == scores  # a prompt has the word in it that it asks for or forbids


@published
def test_the_ifeval_files_have_fifteen_instructions():
    rows = [row for path in sorted(DATA.glob("ifeval_*.jsonl")) for row in psr.datasets.read_ifeval(path)]
    counts = Counter(each.id for row in rows for each in row.instructions)
    assert len(rows) == sum(counts.values()) == 366
    assert len(counts) == 15
    assert counts["keywords:forbidden_words"] == 117
    assert counts["detectable_format:number_highlighted_sections"] == 19


@published
@pytest.mark.parametrize("files", [False, True])
def test_the_axbench_files_are_read_without_loss(files):
    paths = [DATA / "axbench_concept10_metadata.jsonl", DATA / "axbench_concept10_train.parquet"]
    read = psr.datasets.read_axbench(paths if files else DATA)
    assert len(read.concepts) == 10
    assert len(read.rows) == 936
    assert [len(read.positives(concept.concept_id)) for concept in read.concepts] == [72] * 10
    assert [len(read.negatives(concept.concept_id)) for concept in read.concepts] == [216] * 10
    assert {row.output_concept for row in read.positives(3)} == {read.concepts[3].concept}
    names = ("input", "output", "output_concept", "category", "concept_id")
    for row, found in zip(read.rows, pyarrow.parquet.read_table(paths[1]).to_pylist(), strict=True):
        assert {name: getattr(row, name) for name in names} | row.rest == found
    for concept, line in zip(read.concepts, lines_of(paths[0]), strict=True):
        assert {name: getattr(concept, name) for name in ("concept_id", "concept", "ref")} | concept.rest == line


# --- IFEval -----------------------------------------------------------------------------------------------------------------

IFEVAL = {
    "key": 1,
    "prompt": "Name a city. No commas.",
    "prompt_without_instruction": "Name a city.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_arguments_that_are_null_are_left_out_and_all_else_is_kept(tmp_path):
    arguments = [{"num_bullets": None, "keywords": ["a"]}]
    line = IFEVAL | {"instruction_id_list": ["keywords:existence"], "kwargs": arguments, "old": [1, {"b": None}]}
    [row] = psr.datasets.read_ifeval(write(tmp_path / "x.jsonl", "", line, ""))
    assert row.instructions[0].arguments == {"keywords": ["a"]}
    assert row.rest == {"old": [1, {"b": None}]}
    assert row.where == f"{tmp_path / 'x.jsonl'}, line 2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "1"}, 'key is "1", expected a whole number'),
        ({"key": None}, "key is null"),
        ({"prompt": ""}, 'prompt is "", expected a non-empty text as prompt'),
        ({"prompt_without_instruction": None}, "prompt_without_instruction is null"),
        ({"instruction_id_list": []}, r"instruction_id_list is \[\]"),
        ({"instruction_id_list": [3]}, r"instruction_id_list is \[3\]"),
        ({"kwargs": []}, "0 kwargs for 1 instructions"),
        ({"kwargs": [None]}, r"kwargs is \[null\]"),
        ({"kwargs": "{}"}, 'kwargs is "{}"'),
    ],
)
def test_a_bad_ifeval_row_is_named_by_file_and_line(tmp_path, change, message):
    path = write(tmp_path / "bad.jsonl", IFEVAL, "", IFEVAL | change)
    with pytest.raises(InputError, match=rf"ifeval: got .*bad\.jsonl, line 3: {message}"):
        psr.datasets.read_ifeval(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "which has no lines"),
        ("{", "line 1: invalid JSON"),
        ("[1]", "line 1: list"),
        ('{"key": 1, "key": 2}', "line 1: invalid JSON .*'key' occurs twice"),
        ("[" * 100_000, "line 1: invalid JSON"),
    ],
)
def test_what_is_no_file_of_objects_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        psr.datasets.read_ifeval(write(tmp_path / "bad.jsonl", text))


def test_a_file_that_is_not_there_or_not_utf_8_is_named(tmp_path):
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    for name in ("none", "latin"):
        for read, argument in ((psr.datasets.read_ifeval, "ifeval"), (psr.datasets.read_persona, "persona")):
            with pytest.raises(InputError, match=rf"{argument}: got .*{name}.* expected a readable file of UTF-8 text"):
                read(tmp_path / name)


# --- persona traits ---------------------------------------------------------------------------------------------------------

PERSONA = {
    "instruction": [{"pos": "Be evil.", "neg": "Be good."}, {"pos": "Be bad.", "neg": "Be kind."}],
    "questions": ["Who are you?", "What do you want?"],
    "eval_prompt": "Is it evil?\n{question}\n{answer}\nGive {a number} from 0 to 100, or REFUSAL.",
}


def test_a_persona_trait_is_read_without_loss(tmp_path):
    found = psr.datasets.read_persona(write(tmp_path / "evil.json", json.dumps(PERSONA | {"note": 3}, indent=2)))
    assert found.name == "evil"
    assert [vars(each) for each in found.instructions] == PERSONA["instruction"]
    assert found.positive == ["Be evil.", "Be bad."]
    assert list(found.questions) == PERSONA["questions"]
    assert found.eval_prompt == PERSONA["eval_prompt"]
    assert found.rest == {"note": 3}


def test_the_judges_prompt_takes_braces_and_backslashes_as_they_are(tmp_path):
    found = psr.datasets.read_persona(write(tmp_path / "evil.json", PERSONA))
    assert found.judge_prompt("{answer} {0}", r"\1 {question}") == (
        "Is it evil?\n{answer} {0}\n\\1 {question}\nGive {a number} from 0 to 100, or REFUSAL."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instruction": []}, r"instruction is \[\]"),
        ({"instruction": None}, "instruction is null"),
        ({"instruction": [{"pos": "a"}]}, r"instruction\[0\]: "),
        ({"instruction": [{"pos": "a", "neg": "b"}, {"pos": "a", "neg": ""}]}, r'instruction\[1\]: neg is ""'),
        ({"questions": "a"}, 'questions is "a"'),
        ({"questions": ["a", 1]}, r"questions\[1\] is 1"),
        ({"eval_prompt": "{question}"}, "an eval_prompt without {answer}"),
        ({"eval_prompt": 3}, "eval_prompt is 3"),
    ],
)
def test_a_bad_persona_trait_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=rf"persona: got .*bad\.json.*{message}"):
        psr.datasets.read_persona(write(tmp_path / "bad.json", PERSONA | change))


# --- AxBench ----------------------------------------------------------------------------------------------------------------

CONCEPT = {"concept_id": 0, "concept": "rivers", "ref": "https://example.com/1"}
EXAMPLE = {"input": "What?", "output": "A river.", "output_concept": "rivers", "category": "positive", "concept_id": 0}
NEGATIVE = EXAMPLE | {"output_concept": "EEEEE", "category": "negative", "concept_id": -1}


def axbench(folder: Path, concepts: list[dict], *tables: list[dict]) -> Path:
    write(folder / "metadata.jsonl", *concepts)
    for number, rows in enumerate(tables):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{number}.parquet")
    return folder


def test_several_tables_are_read_in_order_and_a_concept_has_negatives_of_its_own(tmp_path):
    hard = EXAMPLE | {"category": "hard negative", "output": "A bank."}
    read = psr.datasets.read_axbench(axbench(tmp_path, [CONCEPT, CONCEPT | {"concept_id": 1}], [EXAMPLE, NEGATIVE], [hard]))
    assert [row.category for row in read.rows] == ["positive", "negative", "hard negative"]
    assert [row.category for row in read.negatives(0)] == ["negative", "hard negative"]
    assert [row.category for row in read.negatives(1)] == ["negative"]
    with pytest.raises(InputError, match="concept_id: got 7, expected one of 0, 1"):
        read.positives(7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": ""}, 'input is ""'),
        ({"output": None}, "output is null"),
        ({"category": "neutral"}, 'category is "neutral", expected one of positive'),
        ({"concept_id": 3}, "concept_id is 3, expected a concept of the metadata"),
        ({"concept_id": -1}, "concept_id is -1"),
        ({"concept_id": None}, "concept_id is null"),
    ],
)
def test_a_bad_axbench_row_is_named_by_file_and_row(tmp_path, change, message):
    folder = axbench(tmp_path, [CONCEPT], [EXAMPLE, NEGATIVE, EXAMPLE | change])
    with pytest.raises(InputError, match=rf"axbench: got .*0\.parquet, row 3: {message}"):
        psr.datasets.read_axbench(folder)


def test_bad_axbench_files_are_named(tmp_path):
    with pytest.raises(InputError, match="0 metadata files and 0 parquet files"):
        psr.datasets.read_axbench(tmp_path)
    axbench(tmp_path, [CONCEPT], [EXAMPLE])
    with pytest.raises(InputError, match=r"x\.csv, expected files that end in"):
        psr.datasets.read_axbench([tmp_path / "metadata.jsonl", tmp_path / "x.csv"])
    (tmp_path / "1.parquet").write_bytes(b"no such thing")
    with pytest.raises(InputError, match=r"1\.parquet .*expected a readable parquet file"):
        psr.datasets.read_axbench(tmp_path)
    axbench(tmp_path, [CONCEPT], [EXAMPLE], [{"input": "a"}])
    with pytest.raises(InputError, match=r"1\.parquet without the columns output, output_concept, category, concept_id"):
        psr.datasets.read_axbench(tmp_path)
    axbench(tmp_path, [CONCEPT, CONCEPT | {"concept": ""}])
    with pytest.raises(InputError, match=r'metadata\.jsonl, line 2: concept is ""'):
        psr.datasets.read_axbench(tmp_path)
    axbench(tmp_path, [CONCEPT, CONCEPT])
    with pytest.raises(InputError, match=r"the concepts \[0, 0\], expected at least one concept, and no duplicates"):
        psr.datasets.read_axbench(tmp_path)


# --- pairs as CSV -----------------------------------------------------------------------------------------------------------


def csv_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pairs.csv"
    path.write_bytes(text.encode("utf-8"))
    return path


def test_pairs_are_read_from_csv_as_from_json(tmp_path):
    text = (
        '\ufeffquestion,instruction,response,group,trait,note\r\n"What, is\nit?",Be brief.,"A ""bear"".",pirate,50,x\r\n\r\n'
        "Who?,Be loud.,Me!,,,\r\n"
    )
    assert psr.datasets.read_pairs(csv_file(tmp_path, text)) == [
        PairLine("What, is\nit?", "Be brief.", 'A "bear".', "pirate", 50.0),
        PairLine("Who?", "Be loud.", "Me!"),
    ]


@pytest.mark.parametrize("name", ["trait", "coherence"])
@pytest.mark.parametrize(("score", "read"), [("0", 0.0), ("0.5", 0.5), ("1", 1.0), ("100", 100.0), ("-0.5", None), ("100.5", None)])
def test_scores_are_read_as_they_are_from_0_to_100(tmp_path, name, score, read):
    """A score of 1 is 1 of 100, not all of it; there is one scale, in files and in triplets."""
    (tmp_path / "pairs.jsonl").write_text(f'{{"question": "a", "instruction": "b", "response": "c", "{name}": {score}}}\n')
    files = (tmp_path / "pairs.jsonl", csv_file(tmp_path, f"question,instruction,response,{name}\na,b,c,{score}\n"))
    for path in files:
        if read is None:
            with pytest.raises(InputError, match=rf"{name} is -?\d+\.5, expected a number from 0 to 100"):
                psr.datasets.read_pairs(path)
        else:
            [line] = psr.datasets.read_pairs(path)
            assert getattr(line, name) == read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,instruction\na,b,c\n", "line 2: 3 cells, expected 2"),
        ('question,instruction\n"a\nb",c\nd\n', "line 4: 1 cells, expected 2"),
        ("question,instruction\n,b\n", "line 2: question is null"),
        ("question\na\n", "line 1: the names 'question', expected question and instruction among them"),
        ("question,instruction,question\na,b,c\n", "no duplicates"),
        ("question,instruction,trait\na,b,high\n", 'line 2: trait is "high", expected a number from 0 to 100'),
        ("question,instruction,trait\na,b,nan\n", "line 2: trait is NaN"),
        ('question,instruction\na,"b\n', "line 2: invalid CSV"),
        ('question,instruction\na,"b"c\n', "line 2: invalid CSV"),
        ("question,instruction\n", "which has no lines"),
        ("question,instruction,response\na,b,c\na,b,\n", "a response on 1 of 2 lines"),
    ],
)
def test_a_bad_csv_row_is_named_by_its_line(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"pairs: got .*pairs\.csv.*{message}"):
        psr.datasets.read_pairs(csv_file(tmp_path, text))


# --- questions of the package -----------------------------------------------------------------------------------------------


def test_everyday_questions_are_distinct_short_and_in_an_order_of_the_seeds():
    every = psr.datasets.everyday_questions()
    assert len(every) == len(set(every)) == 120
    assert all(each.endswith("?") and len(each) < 70 for each in every)
    assert psr.datasets.everyday_questions(10) == every[:10]
    assert psr.datasets.everyday_questions(10, seed=1) != every[:10]
    assert sorted(psr.datasets.everyday_questions(seed=1)) == sorted(every)
    with pytest.raises(InputError, match="count: got 121, expected a number from 1 to 120, or None for all"):
        psr.datasets.everyday_questions(121)
