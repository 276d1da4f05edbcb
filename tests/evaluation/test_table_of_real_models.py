"""The tables of real models in the docs are those of the numbers that are committed beside the benchmarks."""

import json

import pytest
from helpers import BENCHMARKS, benchmark_script

NUMBERS = json.loads((BENCHMARKS / "real" / "smollm2.json").read_text(encoding="utf-8"))
PAGE = (BENCHMARKS.parent / "docs" / "real-models.md").read_text(encoding="utf-8")


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "real"))
    with benchmark_script("table") as script:
        yield script


def test_every_measured_row_is_in_the_page(table):
    text = f"{table.summary_of(NUMBERS)}\n{table.tables_of(NUMBERS)}"
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [held["rows"].keys() for held in NUMBERS["instructions"].values()]
    assert len(lines) == sum(2 + len(each) for each in (*rows, set().union(*rows)))  # the summary has all methods
    for line in lines:
        assert f"{line}\n" in PAGE


def test_the_summary_has_a_column_for_each_instruction_and_the_scores_of_the_chosen_strength(table):
    french = NUMBERS["instructions"]["french"]
    rows = french["rows"]
    few = {"rows": {name: rows[name] for name in ("none", "prompt", "A-PSR")}}
    head, _, *lines = table.summary_of({"instructions": {"french": french, "few": few}}).splitlines()
    assert head == "|  | french | few |"
    cells = {line.split(" | ")[0][2:]: line.strip("| ").split(" | ")[1:] for line in lines}
    assert cells.keys() == rows.keys()
    for name, (one, other) in cells.items():
        chosen = rows[name].get("TA@C80", rows[name])
        trait, low, high = chosen["trait"]
        assert one == f"{trait:.0f} [{low:.0f}, {high:.0f}] / {chosen['coherence'][0]:.0f}"
        assert other == (one if name in few["rows"] else "–")


def test_the_instructions_that_are_used_are_those_that_the_model_follows():
    used = {name: row for name, row in NUMBERS["screened"].items() if row["prompt"] >= 50 and row["none"] <= 10}
    assert used == {name: row for name, row in NUMBERS["screened"].items() if row["used"]}
    assert NUMBERS["instructions"].keys() <= used.keys()
    for row in used.values():
        assert f"| {row['instruction']} | {row['none']:.0f} | {row['prompt']:.0f} |\n" in PAGE
    assert f"Of {len(NUMBERS['screened'])} instructions" in PAGE


TRIED = {"1": [40, 90], "1.25": [70, 80], "1.5": [90, 79.9], "2": [70, 85]}


def test_a_strength_is_the_best_of_those_that_are_coherent_enough(table):
    assert table.chosen_of(TRIED, 80) == 1.25  # the smaller of two with the same trait
    assert table.chosen_of(TRIED, 95) == 1.0  # none is that coherent


def test_a_row_is_complete_with_all_strengths_and_those_that_they_choose(table):
    tried = {f"{alpha:g}": [50 * alpha, 100 - 5 * alpha] for alpha in table.EVERYWHERE}
    row = {"validation": tried, "alpha 1": {"alpha": 1.0}, "TA@C80": {"alpha": 4.0}, "TA@Cp": {"alpha": 2.0}}
    held = {"rows": {"A-Const DiM": row}, "on_validation": [90, 91]}  # TA@Cp's coherence is at least 90: that of strength 2
    assert table.complete("A-Const DiM", held)
    assert not table.complete("A-PSR", held)
    assert not table.complete("A-Const DiM", held | {"on_validation": [90, 95]})  # 1 is chosen then
    few = {alpha: found for alpha, found in tried.items() if alpha != "2.5"}
    assert not table.complete("A-Const DiM", held | {"rows": {"A-Const DiM": row | {"validation": few}}})
