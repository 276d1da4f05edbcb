"""A session of the playground, and a server that runs."""

import re
import threading
import time
from collections.abc import Iterator

import pytest
from helpers import pairs_of, random_replacement
from playground_runs import SAMPLED, Served

import psr_lens as psr
from psr_lens.apps.playground.play import session_of
from psr_lens.apps.playground.session import Session


@pytest.fixture(scope="module")
def methods(organism) -> dict[str, psr.Replacement]:
    return {"A": random_replacement(organism.model, size=0.05), "B <i>": random_replacement(organism.model, layers=[2], seed=1)}


@pytest.fixture
def session(organism, methods) -> Iterator[Session]:
    made = session_of(organism.model, pairs_of(organism.model, 2), methods, sampling=SAMPLED)
    yield made
    made.stop()


@pytest.fixture(scope="module")
def served(organism, methods) -> Iterator[Served]:
    for name in ("starlette", "uvicorn"):
        pytest.importorskip(name, reason="needs the extra `play`")
    from psr_lens.apps.playground.server import Server

    session = session_of(organism.model, pairs_of(organism.model, 2), methods, sampling=SAMPLED)
    server = Server(session)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    found = re.fullmatch(r"http://(127\.0\.0\.1:\d+)/#key=([\w-]{43})", server.address)
    assert found
    while not server._server.started:
        time.sleep(0.005)
    yield Served(server.address, *found.groups(), session)
    server.stop()
    thread.join(30)
    assert not thread.is_alive()
