import math

import numpy as np
import pytest

from psr_lens.results.bootstrap import estimate, mean_interval, percentile_interval, ratio
from psr_lens.results.correlation import pearson, spearman


def data(seed=0, responses=40):
    rng = np.random.default_rng(seed)
    response = np.repeat(np.arange(responses), rng.integers(3, 12, responses))
    shift = rng.normal(size=responses)[response]  # tokens of one response are alike
    x = (shift + rng.normal(size=len(response))).round(1)
    return x, (x + shift + rng.normal(size=len(response))).round(1), response, responses


def ranks(values):
    return np.array([(values < each).sum() + (values == each).sum() / 2 for each in values])


def slow_interval(statistic, x, y, response, n, resamples=600):
    """Whole responses drawn one by one, and the statistic computed anew on the tokens of those drawn."""
    rng = np.random.default_rng(99)
    tokens = [np.flatnonzero(response == each) for each in range(n)]
    found = []
    for _ in range(resamples):
        drawn = np.concatenate([tokens[each] for each in rng.integers(0, n, n)])
        found.append(statistic(x[drawn], y[drawn]))
    return np.quantile(found, [0.025, 0.975])


@pytest.mark.parametrize(
    ("fast", "slow"),
    [
        (pearson, lambda x, y: np.corrcoef(x, y)[0, 1]),
        (spearman, lambda x, y: np.corrcoef(ranks(x), ranks(y))[0, 1]),
        (
            lambda x, y, response, n: estimate(ratio(np.bincount(response, x + 5), np.bincount(response, y + 5)), n),
            lambda x, y: (x + 5).sum() / (y + 5).sum(),
        ),
    ],
)
def test_value_and_interval_are_those_of_a_bootstrap_written_out(fast, slow):
    x, y, response, n = data()
    found = fast(x, y, response, n)
    assert float(found.value) == pytest.approx(slow(x, y), rel=1e-9)
    low, high = slow_interval(slow, x, y, response, n)
    assert found.n == n
    assert found.interval() == pytest.approx((low, high), abs=0.12 * (high - low))


def test_tokens_of_one_response_are_not_taken_for_independent():
    rng = np.random.default_rng(0)
    response = np.repeat(np.arange(20), 50)
    values = rng.normal(size=20)[response]
    by_response = estimate(ratio(np.bincount(response, values), np.bincount(response).astype(float)), 20)
    by_token = estimate(ratio(values, np.ones_like(values)), len(values))
    wide, narrow = (high - low for low, high in (by_response.interval(), by_token.interval()))
    assert wide > 5 * narrow


def test_what_is_the_same_on_all_tokens_has_no_correlation():
    x, y, response, n = data()
    for measure in (pearson, spearman):
        assert math.isnan(float(measure(np.full_like(x, 0.1), y, response, n).value))
        assert math.isnan(float(measure(x, np.full_like(x, -7.0), response, n).value))
        assert math.isnan(measure(x[:0], y[:0], response[:0], n).interval()[0])


def test_a_layer_that_cannot_be_measured_is_nan_and_the_others_are_not():
    found = estimate(ratio(np.ones((5, 2)), np.array([[1.0, 0.0]] * 5)), 5)
    assert found.value[0] == 1
    assert found.interval(0) == (1, 1)
    assert math.isnan(found.value[1])
    assert math.isnan(found.interval(1)[0])


@pytest.mark.parametrize("values", [[], [73.0]])
def test_fewer_than_two_observations_have_no_interval_however_it_is_asked_for(values):
    values = np.array(values)
    count = len(values)
    found = (
        mean_interval(values),
        percentile_interval(np.full(100, 73.0), count),
        estimate(ratio(values, np.ones(count)), count).interval(),
    )
    assert np.isnan(found).all()


def test_the_interval_of_a_mean_has_about_the_right_width_and_is_the_same_each_time():
    values = np.random.default_rng(1).normal(50, 10, size=400)
    low, high = mean_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert mean_interval(values) == (low, high) == estimate(ratio(values, np.ones(400)), 400).interval()


def test_constant_values_have_an_interval_of_no_width():
    assert mean_interval(np.full(20, 70.0)) == (70.0, 70.0)


def test_one_response_has_no_interval_and_draws_are_the_same_each_time():
    one = estimate(ratio(np.ones(1), np.ones(1)), 1)
    assert float(one.value) == 1
    assert math.isnan(one.interval()[0])
    x, y, response, n = data()
    assert pearson(x, y, response, n).interval() == pearson(x, y, response, n).interval()
