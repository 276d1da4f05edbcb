"""The tables of fits in the README, in docs and in benchmarks are those of the numbers that are committed beside them."""

from pathlib import Path

import pytest
import typer
from helpers import BENCHMARKS, benchmark_script

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fits():
    with benchmark_script("fit") as script:
        yield script


@pytest.fixture(scope="module")
def rows(fits):
    return fits.parts_of([BENCHMARKS / "fit"])[0]


@pytest.mark.parametrize("model", ["organism", "organism-gpt2"])
def test_both_tables_of_a_model_are_those_of_its_numbers(fits, rows, model):
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    summary = fits.summary(rows, model)
    methods = [name for name in fits.METHODS if name != fits.CLOSEST_METHOD]
    assert [line[0] for line in summary] == methods
    shown = list(filter(fits.is_shown_by_trait, methods))
    for line in [*summary, *fits.by_trait(rows, model, shown)]:
        assert f"| {' | '.join(line)} |\n" in text
    assert len(fits.traits_of([row for row in rows if row["model"] == model])) == 9


def test_the_table_of_the_results_page_is_one_of_them(fits, rows):
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for line in fits.summary(rows, "organism"):
        assert f"| {' | '.join(line)} |\n" in text


def test_the_rows_of_the_front_page_are_among_them(fits, rows):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = {f"| {' | '.join(line)} |" for line in fits.summary(rows, "organism")}
    shown = [line for line in text.splitlines() if line.startswith(("| S-", "| A-"))]
    assert len(shown) == 5
    assert set(shown) <= measured


def test_parts_of_several_settings_are_refused(fits):
    with pytest.raises(typer.BadParameter, match="got parts with 2 settings"):
        fits.parts_of([BENCHMARKS / "fit", BENCHMARKS / "fit" / "closest"])
