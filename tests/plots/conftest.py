"""A made-up result, which the figures draw. Imports are within, as `typecheck.install` says."""

import pytest


@pytest.fixture
def result():
    from made_up_results import comparison

    return comparison()
