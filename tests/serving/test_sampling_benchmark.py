"""`benchmarks/sample.py`: the ratio is that of tokens a second, and the page has the numbers of the file."""

import json

import pytest
import typer
from helpers import BENCHMARKS, benchmark_script


@pytest.fixture(scope="module")
def script():
    with benchmark_script("sample") as found:
        yield found


def test_the_table_in_the_page_is_that_of_the_numbers(script):
    content = json.loads((BENCHMARKS / "sample.json").read_text(encoding="utf-8"))
    assert script.table_of(content) in (BENCHMARKS.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    assert (content["responses"], content["new"]) == (script.COUNT, script.NEW)
    for runs in content["runs"].values():
        assert all(len(turns) == script.TURNS for turns in runs.values())
        assert all(0 < tokens <= script.COUNT * script.NEW for turns in runs.values() for _, tokens in turns)


def test_a_ratio_is_that_of_tokens_a_second_within_a_turn(script):
    alone, engine = [[10.0, 1_000], [20.0, 1_000], [10.0, 2_000]], [[5.0, 2_000], [10.0, 3_000], [2.0, 1_200]]
    runs = {"psr.generate": alone, "vLLM": engine, "psr.generate, steered": engine, "vLLM, steered": alone}
    content = {"responses": 200, "new": 32, "machine": "here", "versions": "vllm 1", "runs": {"tiny": runs}}
    lines = script.table_of(content).splitlines()
    assert lines[-2] == "| tiny | unsteered | 100 | 400 | 4.0 (3.0–6.0) |"
    assert lines[-1] == "| tiny | steered | 400 | 100 | 0.2 (0.2–0.3) |"


def test_questions_are_as_many_as_responses_and_all_different(script):
    assert len(set(script.questions())) == script.COUNT


def test_numbers_of_other_settings_are_not_added_to(script, tmp_path):
    file, settings = tmp_path / "numbers.json", {"new": 32}
    content, save = script.opened_for(file, settings, {"runs": {}})
    content["runs"]["tiny"] = 1
    save()
    assert script.opened_for(file, settings, {"runs": {}})[0] == {"new": 32, "runs": {"tiny": 1}}
    with pytest.raises(typer.BadParameter, match=r"got {'new': 8}, expected those of the file, {'new': 32}"):
        script.opened_for(file, {"new": 8}, {"runs": {}})
