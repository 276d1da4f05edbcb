"""The learning curve of a fit as a figure."""

import math

import pytest

from psr_lens import plots
from psr_lens.errors import InputError
from psr_lens.replacement import LearningCurve


def test_it_shows_both_losses_by_epoch_on_a_log_scale_and_the_epoch_that_was_kept():
    curve = LearningCurve((2.0, 0.2, 0.02, 0.01), (3.0, 0.5, 0.7, 0.9), (1.0,) * 4, 1)
    figure = plots.learning_curve(curve)
    training, validation = figure.data
    assert (training.name, validation.name) == ("training", "validation")
    assert list(training.x) == [1, 2, 3, 4]
    assert list(training.customdata) == [2.0, 0.2, 0.02, 0.01]
    assert list(validation.y) == pytest.approx([math.log10(loss) for loss in curve.validation])
    assert [shape.x0 for shape in figure.layout.shapes] == [2]
    low, high = figure.layout.yaxis.range
    assert low < math.log10(0.01)
    assert high > math.log10(3)
    assert "0.1" in figure.layout.yaxis.ticktext


def test_without_validation_there_is_one_line_and_no_mark_at_the_last_epoch():
    figure = plots.learning_curve(LearningCurve((1.0, 0.5), (), (1.0, 1.0), 1))
    assert [line.name for line in figure.data] == ["training"]
    assert not figure.layout.shapes


def test_a_loss_that_has_no_logarithm_leaves_a_gap():
    figure = plots.learning_curve(LearningCurve((1.0, 0.0, float("nan")), (), (1.0,) * 3, None))
    assert list(figure.data[0].y) == [0.0, None, None]


def test_losses_that_hardly_differ_have_several_ticks_with_labels_of_their_own():
    axis = plots.learning_curve(LearningCurve((0.531, 0.527, 0.523), (), (1.0,) * 3, None)).layout.yaxis
    assert len(axis.tickvals) > 1
    assert len(set(axis.ticktext)) == len(axis.ticktext)
    assert [float(label) for label in axis.ticktext] == pytest.approx([10**tick for tick in axis.tickvals], rel=1e-3)


@pytest.mark.parametrize("curve", [None, LearningCurve((), (), (), None)], ids=["none", "empty"])
def test_a_fit_without_epochs_is_refused_with_a_remedy(curve):
    with pytest.raises(InputError, match=r"curve: got .*gradient descent"):
        plots.learning_curve(curve)
