"""The benchmark of sampling compares what it says it compares, and refuses to time different work."""

import json

import pytest
from helpers import BENCHMARKS, benchmark_script


@pytest.fixture(scope="module")
def benchmark():
    with benchmark_script("generate") as script:
        yield script


@pytest.fixture(scope="module")
def loaded(benchmark, folders):
    return benchmark.load(folders["organism"], ["bridge"])


def test_everything_makes_the_same_number_of_tokens_and_the_greedy_ones_are_transformers_own(benchmark, loaded):
    size = benchmark.Size(new=4, turns=2, triplets=2)
    rows = [row for batch, warm in ((1, 0), (3, 1)) for row in benchmark.cost_of_generation(loaded, batch, warm, size)]
    rows += benchmark.cost_of_capture(loaded, size)
    assert [row["what"] for row in rows] == ["unsteered", "steered", "unsteered", "steered", "capture"]
    assert all(row["class"] == "TransformerBridge" and row["turns"] == 2 and row["ratio"] > 0 for row in rows)
    assert all(row["interval"][0] <= row["ratio"] <= row["interval"][1] for row in rows)


def test_other_tokens_and_other_numbers_of_tokens_are_refused(benchmark):
    benchmark.checks("x", lambda: [(1, 2)], 2, [(1, 2)])()
    with pytest.raises(RuntimeError, match="x made other tokens than transformers"):
        benchmark.checks("x", lambda: [(1, 3)], 2, [(1, 2)])()
    with pytest.raises(RuntimeError, match="x made other numbers of tokens than 2"):
        benchmark.checks("x", lambda: [(1, 2), (1,)], 2)()


def test_ratios_are_medians_of_pairs_and_goals_have_a_direction(benchmark):
    found = benchmark.compared([2.0, 9.0, 3.0], [1.0, 3.0, 3.0], [1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert (found["ratio"], found["ratio of CPU time"], found["turns"]) == (2.0, 0.5, 3)
    assert found["interval"] == (1.0, 3.0)
    assert benchmark.is_reached({"what": "capture", "ratio": 9.0, "ratio of CPU time": 1.05, "wanted": 1.1})
    assert not benchmark.is_reached({"what": "capture", "ratio": 9.0, "ratio of CPU time": 1.15, "wanted": 1.1})
    assert benchmark.is_reached({"what": "steered", "ratio": 9.0, "ratio of CPU time": 0.94, "wanted": 0.93})
    assert not benchmark.is_reached({"what": "unsteered", "ratio": 9.0, "ratio of CPU time": 0.94, "wanted": 0.95})


def test_the_tables_in_benchmarks_are_those_of_the_numbers_beside_them_and_the_goals_are_reached(benchmark):
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    rows = [row for path in sorted((BENCHMARKS / "generate").glob("*.json")) for row in json.loads(path.read_text())["rows"]]
    assert {row["class"] for row in rows} == {"HookedTransformer", "TransformerBridge"}
    for line in [*benchmark.lines_of(rows, False), *benchmark.lines_of(rows, True)]:
        assert f"| {' | '.join(line)} |\n" in text
    assert all(map(benchmark.is_reached, rows))
