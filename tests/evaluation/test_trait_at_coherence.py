"""The strength at a target coherence: reading it off a curve, searching for it, and how sure one can be of the trait there."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from psr_lens.evaluation.evaluation_result import Evaluation, Point
from psr_lens.evaluation.trait_at_coherence import OUTCOMES, at_target, search
from psr_lens.results.bootstrap import draws, percentile_interval, resampled_means

NAN = np.nan
ALPHAS = np.array([0.0, 1.0, 2.0, 4.0])


def read(trait, coherence, target=80.0, alphas=ALPHAS):
    found = at_target(alphas, np.array([trait], float), np.array([coherence], float), target)
    return float(found.trait[0]), float(found.alpha[0]), OUTCOMES[int(found.outcome[0])]


# --- reading it off a curve -------------------------------------------------------------------------------------------------


def test_between_two_strengths_both_are_taken_as_straight():
    assert read([0, 20, 60, 100], [100, 95, 85, 65]) == (pytest.approx(70.0), pytest.approx(2.5), "reached")


def test_a_strength_exactly_at_the_target_is_taken_as_it_is():
    assert read([0, 20, 60, 100], [100, 95, 80, 65]) == (60.0, 2.0, "reached")


def test_of_several_falls_through_the_target_the_last_one_counts():
    assert read([0, 10, 90, 100], [100, 60, 90, 70]) == (pytest.approx(95.0), pytest.approx(3.0), "reached")


def test_where_coherence_stays_up_the_best_trait_is_taken():
    assert read([0, 30, 50, 40], [100, 99, 98, 97]) == (50.0, 2.0, "above")
    assert read([0, 30, 50, 40], [100, 99, 70, 97]) == (40.0, 4.0, "above")  # what is below the target does not count


def test_where_coherence_never_gets_there_the_most_coherent_is_taken():
    assert read([1, 30, 50, 40], [40, 50, 79, 60]) == (50.0, 2.0, "below")


def test_without_coherence_nothing_is_measured():
    value, alpha, outcome = read([1, 2, 3, 4], [NAN] * 4)
    assert np.isnan([value, alpha]).all()
    assert outcome == "unmeasured"


def test_a_strength_without_coherence_is_not_at_the_target():
    assert read([0, 20, 60, 100], [100, 95, 85, NAN]) == (60.0, 2.0, "reached")
    assert read([0, 20, NAN, 100], [100, 95, NAN, 65]) == (20.0, 1.0, "reached")


curves = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=7)


@given(curves, st.integers(0, 100))
def test_it_agrees_with_a_fine_walk_along_the_curve(points, target):
    alphas = np.arange(len(points), dtype=float)
    trait, coherence = (np.array(side, float) for side in zip(*points, strict=True))
    fine = np.linspace(0, len(points) - 1, 20_001)
    above = np.interp(fine, alphas, coherence) >= target
    value, alpha, outcome = read(trait, coherence, target, alphas)
    if outcome == "reached":
        last = np.flatnonzero(above)[-1] if above.any() else 0
        assert alpha == pytest.approx(fine[last], abs=1e-3)
        assert value == pytest.approx(np.interp(alpha, alphas, trait), abs=1e-6)
    else:
        assert outcome == ("above" if above[-1] else "below")
        assert value in trait


@given(st.lists(curves.filter(lambda points: len(points) == 4), min_size=1, max_size=5), st.integers(0, 100))
def test_many_curves_at_once_are_read_as_each_by_itself(many, target):
    trait, coherence = np.array(many, float).transpose(2, 0, 1)
    together = at_target(ALPHAS, trait, coherence, np.full(len(many), float(target)))
    assert repr(together).startswith(f"AtTarget({len(many)} curve")
    for place in range(len(many)):
        alone = read(trait[place], coherence[place], target)
        assert (together.trait[place], together.alpha[place], OUTCOMES[together.outcome[place]]) == alone


# --- searching --------------------------------------------------------------------------------------------------------------


class Curve:
    def __init__(self, coherence, *alphas):
        self.coherence, self.measured, self.rounds = coherence, [], 0
        self.known = {alpha: coherence(alpha) for alpha in (0.0, *alphas)}

    def __call__(self, alphas):
        self.rounds += 1
        for alpha in alphas:
            assert alpha not in self.known, "measured twice"
            self.measured.append(alpha)
            self.known[alpha] = self.coherence(alpha)

    def found(self, target=80.0):
        alphas = sorted(self.known)
        return read([0.0] * len(alphas), [self.known[alpha] for alpha in alphas], target, np.array(alphas))[1:]


def searched(coherence, *known, targets=(80.0,), maximum=16.0, steps=6, tolerance=0.5):
    curve = Curve(coherence, *known)
    search(curve, curve.known, targets, maximum=maximum, steps=steps, tolerance=tolerance)
    return curve


@pytest.mark.parametrize("root", [0.13, 0.8, 1.0, 1.7, 5.0, 13.0])
def test_it_finds_where_a_smooth_curve_falls_through_the_target(root):
    curve = searched(lambda alpha: 100 - 20 * (alpha / root) ** 2, tolerance=0.0, steps=8)
    alpha, outcome = curve.found()
    assert outcome == "reached"
    assert alpha == pytest.approx(root, rel=0.01)
    assert curve.measured[0] == 1.0
    assert len(curve.measured) <= 5 + 8


def test_it_stops_close_to_the_target_and_after_so_many_halvings():
    assert searched(lambda alpha: 100 - 10 * alpha, tolerance=0.1).measured == [1.0, 2.0, 4.0]
    assert len(searched(lambda alpha: 100 - 11 * alpha, tolerance=0.0, steps=3).measured) == 2 + 3
    assert searched(lambda alpha: 100 - 11 * alpha, steps=0).measured == [1.0, 2.0]


def test_what_is_known_is_not_measured_again_and_bounds_the_search():
    curve = searched(lambda alpha: 100 - 11 * alpha, 1.0, 1.5, 2.0)
    assert all(1.5 < alpha < 2.0 for alpha in curve.measured)
    assert searched(lambda alpha: 99.0, 1.0, 16.0).measured == []


def test_doubling_ends_at_the_maximum():
    assert searched(lambda alpha: 99.0, maximum=6.0).measured == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("level", [50.0, NAN])
def test_where_nothing_reaches_the_target_it_gives_up_after_one(level):
    assert searched(lambda alpha: level).measured == [1.0]


@pytest.mark.parametrize("other", [97.0, 60.0, 20.0])
def test_several_targets_are_looked_for_together_and_each_as_well_as_by_itself(other):
    def coherence(alpha):
        return 100 - 3.1 * alpha**2

    both = searched(coherence, targets=(80.0, other))
    alone = [searched(coherence, targets=(target,)) for target in (80.0, other)]
    for target, curve in zip((80.0, other), alone, strict=True):
        assert both.found(target) == (pytest.approx(curve.found(target)[0], rel=0.02), "reached")
    assert both.rounds == max(curve.rounds for curve in alone)
    assert len(both.measured) < sum(len(curve.measured) for curve in alone)


# --- how sure one can be ----------------------------------------------------------------------------------------------------


def test_resamples_are_the_same_for_everything_and_leave_out_what_is_missing():
    values, present = np.array([1.0, 2.0, NAN, 4.0]), np.array([True, True, False, True])
    drawn = draws(4)
    assert (drawn.sum(axis=1) == 4).all()
    means = resampled_means(values, present)
    place = int(np.flatnonzero(drawn[:, 2] == 1)[0])
    chosen = [value for value, times in zip(values, drawn[place], strict=True) for _ in range(int(times)) if not np.isnan(value)]
    assert means[place] == pytest.approx(np.mean(chosen))
    assert np.isnan(means[drawn[:, 2] == 4]).all()


def simulated(rng, questions=80):
    """Questions whose coherence falls and whose trait grows at speeds of their own; on average straight lines, TA@C80 = 52 at α = 2."""
    pace = rng.gamma(4.0, 0.25, size=questions)  # mean 1
    noise = rng.normal(0, 8, size=(2, 4, questions))
    coherence = 100 - 10 * np.outer(ALPHAS, pace) + noise[0]
    trait = 20 + 16 * np.outer(ALPHAS, 0.5 + 0.5 * pace) + noise[1]
    points = tuple(Point(float(alpha), t, c, ("",) * questions) for alpha, t, c in zip(ALPHAS, trait, coherence, strict=True))
    return Evaluation({"m": points}, {"TA@C80": 80.0}, ("q",) * questions)


def test_the_interval_covers_the_truth_as_often_as_it_says_and_one_at_a_fixed_strength_does_not():
    rng = np.random.default_rng(0)
    covered = np.zeros(2)
    for _ in range(200):
        found = simulated(rng)
        at = found.calibrated("m")
        low, high = (found.curves["m"][place] for place in ((2, 3) if at.alpha > 2 else (1, 2)))
        share = (at.alpha - low.alpha) / (high.alpha - low.alpha)
        fixed = percentile_interval((1 - share) * low.resampled("trait") + share * high.resampled("trait"), 80)
        covered += [each[0] <= 52 <= each[1] for each in (at.interval, fixed)]
    assert 0.92 <= covered[0] / 200 <= 0.98
    assert covered[1] / 200 < 0.85
