"""The tables of docs/transfer.md are those of the numbers beside the benchmarks, and the goals that the page states are met."""

import json

import pytest
from helpers import BENCHMARKS, benchmark_script

CONTENT = json.loads((BENCHMARKS / "transfer.json").read_text(encoding="utf-8"))
REAL = json.loads((BENCHMARKS / "real" / "transfer.json").read_text(encoding="utf-8"))
PAGE = (BENCHMARKS.parent / "docs" / "transfer.md").read_text(encoding="utf-8")
RUNGS = ("gates, plain map", "through text", "gates through text, plain map")


@pytest.fixture(scope="module")
def script():
    with benchmark_script("transfer") as found:
        yield found


@pytest.mark.parametrize("models", CONTENT["models"])
@pytest.mark.parametrize("at", ["alpha 1", "calibrated"])
def test_every_row_is_in_the_page(script, models, at):
    groups = script.GROUPS if at == "alpha 1" else script.GROUPS[:1]
    for cells in groups:
        rows = script.summary_of(models, CONTENT, at, cells)
        assert len(rows) == 1 + 9 + 1
        for row in rows:
            assert f"| {' | '.join(row)} |\n" in PAGE


@pytest.mark.parametrize("models", REAL["models"])
@pytest.mark.parametrize("at", ["alpha 1", "calibrated"])
def test_every_row_of_real_models_is_in_the_page(script, models, at):
    for row in script.summary_of(models, REAL, at, script.GROUPS[0]):
        assert f"| {' | '.join(row)} |\n" in PAGE


def kept(script, models, at, group):
    head, *_, last = script.summary_of(models, CONTENT, at, script.GROUPS[group])
    return {name: int(cell.split()[0]) for name, cell in zip(head[1:], last[1:], strict=True)}


@pytest.mark.parametrize("models", CONTENT["models"])
def test_the_rungs_keep_seven_of_nine_traits_at_the_chosen_strength_and_the_floors_and_whole_transfer_do_not(script, models):
    found = kept(script, models, "calibrated", 0)
    assert all(found[name] >= 7 for name in RUNGS)
    assert all(found[name] <= 3 for name in ("gates, shuffled map", "gates, random map", "constants"))
    whole = kept(script, models, "calibrated", 1)
    assert whole.pop("native") == 9
    assert set(whole.values()) == {0}


AGREEMENT = json.loads((BENCHMARKS / "agreement.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("models", AGREEMENT["models"])
def test_every_row_of_the_agreement_is_in_the_page(models):
    with benchmark_script("agreement") as script:
        rows = script.table_of(AGREEMENT, models)
    assert len(rows) == 9
    assert all(f"{row}\n" in PAGE for row in rows)
