"""Trait against coherence as a figure."""

import pytest
from made_up_results import CURVES, TABLE, result_rows

from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.plots.style import PALETTE, named_styles
from psr_lens.results.table import ResultTable


def test_a_line_a_method_by_ascending_strength_and_a_star_for_the_prompt():
    figure = plots.pareto(TABLE)
    traces = {trace.name: trace for trace in figure.data}
    assert set(traces) == {"none", "prompt", "A-PSR", "S-Const &lt;b&gt;"}
    assert list(traces["A-PSR"].y) == [0.0, 96.0, 97.0]
    assert list(traces["A-PSR"].x) == [99.0, 97.0, 70.0]
    assert list(traces["S-Const &lt;b&gt;"].x) == [90.0]  # a strength without scores is not drawn at 0
    assert traces["prompt"].marker.symbol == "star-open"  # with the circle of none, hollow: a method's point may be inside
    assert traces["none"].marker.symbol == "circle-open"
    assert max(trace.marker.size for name, trace in traces.items() if "-" in name) < traces["none"].marker.size
    assert traces["A-PSR"].line.color == PALETTE["A-PSR"]
    assert figure.data[-1].name == "prompt"  # above the lines


def test_hovering_says_strength_scores_intervals_and_what_is_missing():
    trace = next(trace for trace in plots.pareto(TABLE).data if trace.name == "A-PSR")
    assert trace.text[1] == "<b>A-PSR</b>, α = 1<br>trait 96.0 [95.0, 97.0]<br>coherence 97.0 [96.0, 98.0]<br>3 missing"


def test_targets_are_lines_across_and_none_where_there_are_none():
    assert [shape.x0 for shape in plots.pareto(TABLE).layout.shapes] == [80.0]
    assert not plots.pareto(ResultTable(TABLE.rows)).layout.shapes


def test_results_of_several_traits_or_without_scores_are_refused_with_a_remedy():
    two = ResultTable(tuple(result_rows("A-PSR", CURVES["A-PSR"], trait="a") + result_rows("A-PSR", CURVES["A-PSR"], trait="b")))
    with pytest.raises(InputError, match=r"several traits \('a', 'b'\).*mean_over"):
        plots.pareto(two)
    assert len(plots.pareto(two.mean_over("trait")).data) == 1
    assert len(plots.pareto(two.select(trait="a")).data) == 1
    for table in (ResultTable(()), TABLE.select(metric="trait")):
        with pytest.raises(InputError, match="rows without trait and coherence"):
            plots.pareto(table)


@pytest.mark.parametrize(("lowest", "ticks"), [(99.0, range(95, 101)), (70.0, range(70, 101, 5)), (0.0, range(0, 101, 20))])
def test_the_axis_of_coherence_names_no_score_above_100(lowest, ticks):
    table = ResultTable(tuple(result_rows("A-PSR", [(1.0, 50.0, 100.0), (2.0, 50.0, lowest)])))
    axis = plots.pareto(table).layout.xaxis
    assert list(axis.tickvals) == list(ticks)
    assert axis.range[0] <= ticks[0]


def test_many_methods_can_be_told_apart():
    names = ["none", "prompt", *(f"S-Const {n}" for n in range(4)), "S-PSR", "S-PSR LL", "A-PSR", "A-PSR LL", "A-PSR + prompt"]
    table = ResultTable(tuple(row for name in names for row in result_rows(name, [(1.0, 50.0, 50.0)])))
    looks = {(trace.line.color, trace.line.dash, trace.marker.symbol) for trace in plots.pareto(table).data}
    assert len(looks) == len(names)
    assert named_styles(["CAA", "S-PSR"])["CAA"].role == "constant"
