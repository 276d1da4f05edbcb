"""The table of results: selecting, averaging, and the forms in which it leaves."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from psr_lens.errors import ArtifactError, InputError
from psr_lens.results.bootstrap import NO_INTERVAL
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

NAN = math.nan


def row(method="A-PSR", metric="TA@C80", value=90.0, trait="pirate", block="descriptions", **others):
    return Result(
        method, metric, value, others.pop("n", 100), others.pop("interval", (value - 1, value + 1)), trait, block, **others
    )


TABLE = ResultTable(
    (
        row(alpha=1.5, missing=2),
        row(metric="coherence", value=80.0, alpha=1.5),
        row("S-Const DiM", value=NAN, interval=NO_INTERVAL, alpha=None),
        row("S-Const DiM", metric="coherence", value=79.5),
    ),
    {"seed": 3, "model": "organism", "targets": (80.0,)},
)


@pytest.mark.usefixtures("unchecked")
def test_it_is_a_sequence_of_rows_that_can_be_selected_by_one_value_or_several():
    assert len(TABLE) == 4
    assert [each.value for each in TABLE.select(metric="coherence")] == [80.0, 79.5]
    assert len(TABLE.select(metric=["coherence", "TA@C80"], method="A-PSR")) == 2
    assert len(TABLE.select(method="nobody")) == 0
    assert TABLE.select(method="A-PSR").settings == TABLE.settings
    with pytest.raises(InputError, match=r"field: got 'metrik', expected one of .*Did you mean 'metric'"):
        TABLE.select(metrik="x")


@pytest.mark.usefixtures("unchecked")
def test_adding_keeps_all_rows_and_says_which_settings_differ():
    other, third = (ResultTable((row(trait=name),), {"seed": 3, "model": name, "own": 1}) for name in ("b", "c"))
    both = sum([TABLE, other, third])
    assert both.rows == (*TABLE.rows, *other.rows, *third.rows)
    assert both.settings == {"seed": 3, "model": {"varies": ["organism", "b", "c"]}, "targets": (80.0,), "own": 1}
    with pytest.raises(InputError, match=r"\+: got int, expected a ResultTable"):
        TABLE + 1


def test_json_holds_no_nan_and_gives_back_what_was_written(tmp_path):
    path = (TABLE + ResultTable((row("x", value=math.inf, n=3),), {"steps": np.int64(3)})).to_json(
        tmp_path / "new" / "results.json"
    )

    def refuse(name):
        raise AssertionError(name)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["format"] == 1
    assert content["rows"][2]["value"] is None
    assert content["rows"][2]["interval"] == [None, None]
    back = ResultTable.from_json(path)
    assert repr(back.rows) == repr((*TABLE.rows, row("x", value=math.inf, n=3)))  # NaN equals nothing
    assert back.settings == {"seed": 3, "model": "organism", "targets": [80.0], "steps": 3}
    assert [each.name for each in path.parent.iterdir()] == ["results.json"]


def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path):
    path = TABLE.to_json(tmp_path / "results.json")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"settings: got a = .*object.*, expected what JSON can hold"):
        ResultTable((), {"a": object()}).to_json(path)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "rows": [3], "settings": {}}']
)
def test_a_damaged_file_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"results\.json"):
        ResultTable.from_json(tmp_path / "results.json")
    with pytest.raises(ArtifactError, match=r"no such file"):
        ResultTable.from_json(tmp_path / "none.json")


def test_markdown_has_a_row_a_method_and_says_what_is_missing():
    assert TABLE.to_markdown() == (
        "| method | TA@C80 | coherence |\n"
        "| --- | --- | --- |\n"
        "| A-PSR | 90 [89, 91] (2 missing) | 80 [79, 81] |\n"
        "| S-Const DiM | missing | 79.5 [78.5, 80.5] |\n"
    )
    turned = TABLE.to_markdown(order=["coherence", "nothing"])
    assert turned.splitlines()[0] == "| method | coherence | TA@C80 |"
    assert "| A-PSR | 80 [79, 81] | 90 [89, 91] (2 missing) |" in turned
    assert "a\\|b" in ResultTable((row("a|b"),)).to_markdown()
    two = ResultTable((row(value=0.1234, interval=NO_INTERVAL), row(value=101.26, block="procedures", interval=NO_INTERVAL)))
    assert two.to_markdown(rows=("method", "trait"), columns=("metric", "block")).splitlines() == [
        "| method | trait | TA@C80, descriptions | TA@C80, procedures |",
        "| --- | --- | --- | --- |",
        "| A-PSR | pirate | 0.123 | 101 |",
    ]
    with pytest.raises(InputError, match=r"two results share a cell.*They differ in block"):
        two.to_markdown()
    with pytest.raises(InputError, match=r"field: got 'value'"):
        two.to_markdown(rows="value")


def test_a_notebook_gets_a_table_whatever_is_in_it():
    page = TABLE._repr_html_()
    assert page.count("<tr>") == 1 + 2
    assert "&lt;b&gt;" in ResultTable((row("<b>"),))._repr_html_()
    assert ResultTable((row(), row()))._repr_html_().count("<tr>") == 3
    assert "<table>" in ResultTable(())._repr_html_()


def test_pandas_gets_a_column_a_field():
    frame = TABLE.to_pandas()
    assert list(frame.columns) == ["method", "metric", "value", "n", "low", "high", "trait", "block", "alpha", "layer", "missing"]
    assert frame["value"].isna().tolist() == [False, False, True, False]
    assert frame["low"][0] == 89.0
    assert list(ResultTable(()).to_pandas().columns) == list(frame.columns)


def test_without_pandas_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['pandas'] = None\n"
        "from psr_lens.results.table import ResultTable\n"
        "try: ResultTable(()).to_pandas()\n"
        "except Exception as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install psr-lens[pandas]" in found


def test_the_mean_over_traits_joins_what_was_found_at_each_traits_own_strength():
    traits = {"pirate": 90.0, "shout": 70.0, "sea": 50.0}
    rows = [row(trait=trait, value=value, alpha=value / 10, missing=1) for trait, value in traits.items()]
    (mean,) = ResultTable(tuple(rows)).mean_over("trait")
    assert (mean.value, mean.n, mean.missing, mean.alpha) == (70.0, 300, 3, None)
    assert mean.trait == "mean of 3"
    assert mean.interval[0] < 70 < mean.interval[1]


def test_the_interval_of_a_mean_does_not_leave_what_the_traits_can_reach():
    rows = tuple(row(trait=trait, value=value, interval=(value, value)) for trait, value in (("a", 0.0), ("b", 0.0), ("c", 100.0)))
    (mean,) = ResultTable(rows).mean_over()
    assert mean.interval == (0.0, 100.0)


def test_a_curve_is_averaged_strength_by_strength():
    rows = [row(metric="trait", trait=trait, alpha=alpha, value=10 * alpha) for trait in "ab" for alpha in (1.0, 2.0)]
    assert [(each.alpha, each.value) for each in ResultTable(tuple(rows)).mean_over("trait")] == [(1.0, 10.0), (2.0, 20.0)]


@pytest.mark.usefixtures("unchecked")
def test_a_trait_without_a_value_is_left_out_and_the_label_says_so():
    rows = (row(value=90.0), row(trait="b", value=NAN, interval=NO_INTERVAL))
    (mean,) = ResultTable(rows).mean_over()
    assert (mean.value, mean.trait, mean.interval) == (90.0, "mean of 1 of 2", (89.0, 91.0))
    (none,) = ResultTable(rows[1:]).mean_over()
    assert math.isnan(none.value)
    assert none.trait == "mean of 0 of 1"
    with pytest.raises(InputError, match="over: got 'method', expected 'trait' or 'block'"):
        ResultTable(rows).mean_over("method")


def test_the_interval_over_traits_covers_the_mean_of_the_population_that_traits_come_from():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        values = rng.normal(60, 12, size=9)
        rows = tuple(row(trait=str(place), value=value) for place, value in enumerate(values))
        (mean,) = ResultTable(rows).mean_over()
        covered += mean.interval[0] <= 60 <= mean.interval[1]
    assert 0.87 <= covered / 200 <= 0.98
