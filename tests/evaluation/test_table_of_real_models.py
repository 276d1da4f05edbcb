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
    lines = [line for line in table.tables_of(NUMBERS).splitlines() if line.startswith("|")]
    methods = sum(len(held["rows"]) for held in NUMBERS["instructions"].values())
    assert len(lines) == methods + 2 * len(NUMBERS["instructions"])
    for line in lines:
        assert f"{line}\n" in PAGE


def test_the_instructions_that_are_used_are_those_that_the_model_follows():
    used = {name: row for name, row in NUMBERS["screened"].items() if row["prompt"] >= 50 and row["none"] <= 10}
    assert used == {name: row for name, row in NUMBERS["screened"].items() if row["used"]}
    assert NUMBERS["instructions"].keys() <= used.keys()
    for row in used.values():
        assert f"| {row['instruction']} | {row['none']:.0f} | {row['prompt']:.0f} |\n" in PAGE
    assert f"Of {len(NUMBERS['screened'])} instructions" in PAGE


def test_a_strength_is_the_best_of_those_that_are_coherent_enough(table):
    class Found:
        def __init__(self, trait, coherence):
            self.trait, self.coherence = trait, coherence

    tried = {1.0: Found(40, 90), 1.25: Found(70, 80), 1.5: Found(90, 79.9), 2.0: Found(70, 85)}
    assert table.chosen_of(tried, 80) == 1.25  # the smaller of two with the same trait
    assert table.chosen_of(tried, 95) == 1.0  # none is that coherent
