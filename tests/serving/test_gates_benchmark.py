"""`benchmarks/gates.py`: ratios of turns that were next to each other, engines in every order, and the page's table."""

import json

import pytest
from helpers import BENCHMARKS, benchmark_script


@pytest.fixture(scope="module")
def script():
    with benchmark_script("gates") as found:
        yield found


def made_up():
    """Two processes: the engine with gates takes 1.25 and 0.8 times as long as those without, whose own times are 2 s and 3 s."""
    processes = {}
    for number, factor in enumerate((1.25, 0.8)):
        times = {"none": [2.0, 20.0], "none again": [3.0, 30.0], "PSR": [2.5 * factor, 25.0 * factor]}
        processes[str(number)] = {"1": times, "8": times}
    return {"model": "tiny", "machine": "here", "versions": "vllm 1", "processes": processes}


def test_ratios_are_to_both_engines_without_gates_turn_by_turn(script):
    content = made_up()
    assert script.ratios(content, 1, "PSR") == pytest.approx([0.8, 1.25])
    assert script.ratios(content, 8, "none") == pytest.approx([1.25, 1.25])
    assert script.ratios(content, 8, "none again") == pytest.approx([5 / 6, 5 / 6])
    assert "| 8 | 1.02 (0.80, 1.25) | 1.25, 0.83, 1.25, 0.83 |" in script.table_of(content).splitlines()


def test_each_engine_is_made_first_second_and_last(script):
    assert sorted(map(sorted, script.ORDERS)) == [[0, 1, 2]] * 3
    assert all(sorted(order[place] for order in script.ORDERS) == [0, 1, 2] for place in range(3))


def test_the_table_in_the_page_is_that_of_the_numbers(script):
    content = json.loads((BENCHMARKS / "gates.json").read_text(encoding="utf-8"))
    assert list(content["processes"]) == [str(order) for order in range(len(script.ORDERS))]
    assert script.table_of(content) in (BENCHMARKS.parent / "docs" / "serving.md").read_text(encoding="utf-8")
