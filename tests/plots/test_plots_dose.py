"""The figure of relative doses holds the result's own numbers, a line a method, and the limit."""

from dataclasses import replace

import numpy as np
import pytest

import psr_lens as psr
from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.evaluation.relative_dose import Dose


def found(limit=None, **doses):
    made = {name: Dose((2, 5), np.array(ratio), np.array([0, 0, 1])) for name, ratio in doses.items()}
    nothing = np.zeros(2)
    return psr.Collateral("be brief .", {}, dict.fromkeys(doses, 1.0), {"none": ("a", "b")}, {}, {}, nothing, made, limit)


RATIO = [[0.1, 0.5], [0.2, np.nan], [0.3, 1.5]]


def test_lines_are_the_percentile_and_the_mean_of_each_layer():
    figure = plots.relative_dose(found(**{"A-PSR": RATIO, "<b>": [[0.0, 0.0]] * 3}))
    lines = {trace.name: trace for trace in figure.data}
    assert list(lines) == ["A-PSR", "A-PSR, mean", "&lt;b&gt;", "&lt;b&gt;, mean"]
    assert lines["A-PSR"].x == (2, 5)
    np.testing.assert_allclose(lines["A-PSR"].y, [np.quantile([0.1, 0.2, 0.3], 0.99), np.quantile([0.5, 1.5], 0.99)])
    np.testing.assert_allclose(lines["A-PSR, mean"].y, [0.2, 1.0])
    assert lines["<b>".replace("<", "&lt;").replace(">", "&gt;")].y == (0, 0)
    assert not figure.layout.shapes
    assert figure.layout.yaxis.range[1] > 1.49


def test_the_limit_is_a_line_and_a_report_names_who_is_over_it(tmp_path):
    from html_page import Page
    from made_up_results import comparison

    result = found(limit=2.0, **{"A-PSR": RATIO})
    figure = plots.relative_dose(result)
    assert [shape.y0 for shape in figure.layout.shapes] == [2.0]
    assert figure.layout.yaxis.range[1] > 2
    over = replace(result, dose_limit=1.0)
    words = Page(psr.report(comparison(), tmp_path / "r.html", also=[over]).read_text(encoding="utf-8")).words
    assert "Over the limit of 1: A-PSR." in words


def test_a_result_without_doses_is_refused():
    with pytest.raises(InputError, match="result: got a Collateral without doses"):
        plots.relative_dose(found())
