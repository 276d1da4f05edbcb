"""A session of the playground, and a server that runs. Imports are within, as `typecheck.install` says."""

import pytest


@pytest.fixture(scope="module")
def methods(organism):
    from helpers import random_replacement

    return {"A": random_replacement(organism.model, size=0.05), "B <i>": random_replacement(organism.model, layers=[2], seed=1)}


@pytest.fixture
def session(organism, methods):
    from playground_runs import begun

    made = begun(organism.model, methods)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def served(organism, methods):
    for name in ("starlette", "uvicorn"):
        pytest.importorskip(name, reason="needs the extra `play`")
    from playground_runs import begun, serving

    with serving(begun(organism.model, methods)) as found:
        yield found
