"""The table of neurons in the docs is that of the numbers that are committed."""

import json

import pytest
from helpers import BENCHMARKS, benchmark_script


@pytest.fixture(scope="module")
def neurons():
    with benchmark_script("neurons") as script:
        yield script


@pytest.fixture(scope="module")
def numbers():
    return json.loads((BENCHMARKS / "neurons.json").read_text(encoding="utf-8"))


def test_the_tables_in_the_guide_are_those_of_the_numbers_in_benchmarks(neurons, numbers):
    lines = neurons.tables_of(numbers).splitlines()
    text = (BENCHMARKS.parent / "docs" / "ordinary-weights.md").read_text(encoding="utf-8")
    assert sum(line.startswith("| dense") for line in lines) == 2
    for line in lines:
        assert f"{line}\n" in text


def test_both_organisms_and_all_traits_are_there(neurons, numbers):
    assert set(numbers["models"]) == {"organism", "organism-gpt2"}
    for found in numbers["models"].values():
        assert set(found["traits"]) == set(neurons.psr.organism.INSTRUCTIONS)
        assert sum(neurons.is_close(held, "neurons") for held in found["traits"].values()) >= 7


def test_a_checkpoint_counts_as_close_by_its_worse_side(neurons):
    def held(trait: float, coherence: float):
        scores = {"descriptions": {"trait": trait, "coherence": coherence}}
        return {"A-PSR": {"descriptions": {"trait": 95.0, "coherence": 95.0}}, "neurons": {"checkpoint": scores}}

    assert neurons.is_close(held(93.0, 99.0), "neurons")
    assert not neurons.is_close(held(99.0, 92.9), "neurons")
    assert not neurons.is_close(held(92.9, 99.0), "neurons")
