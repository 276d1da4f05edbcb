"""Whom the playground's server answers, and how it ends."""

import asyncio
import json
import re
import socket
import threading
from typing import Any

import pytest
from helpers import pairs_of
from playground_runs import SAMPLED, Served, asked

from psr_lens.apps.playground.play import session_of
from psr_lens.apps.playground.session import Session


@pytest.mark.parametrize("path", ["/hello", "/run", "/stop", "/inspect", "/freeze"])
@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (421, {"Host": "localhost"}),
        (421, {"Host": "evil.example"}),
        (400, {"Host": None}),  # refused by uvicorn
        (403, {"Origin": "http://evil.example"}),
        (403, {"Origin": "null"}),
        (403, {"Origin": "https://127.0.0.1"}),
        (403, {"Origin": None}),
        (401, {"Authorization": "Bearer wrong"}),
        (401, {"Authorization": None}),
        (401, {"Authorization": "Bearer "}),
        (415, {"Content_Type": "text/plain"}),
        (415, {"Content_Type": "application/x-www-form-urlencoded"}),
        (415, {"Content_Type": None}),
    ],
)
def test_a_request_with_one_thing_wrong_is_refused(served, path, status, headers):
    assert served.ask(path, **headers).status == status


def test_host_names_other_than_the_address_are_refused_with_the_right_port(served):
    port = served.host.rpartition(":")[2]
    for host in (f"localhost:{port}", f"evil.example:{port}", f"127.0.0.1:{port}.evil.example", "127.0.0.1"):
        assert served.ask("/hello", Host=host, Origin=f"http://{host}").status == 421
        assert served.ask("/", None, "GET", Host=host).status == 421


def test_bodies_that_are_no_small_json_object_are_refused(served):
    assert served.ask("/hello").status == 200
    for body in (b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000):
        assert served.ask("/hello", body).status == 400
    assert served.ask("/run", b" " * 200_001).status == 413


def test_only_the_pages_own_addresses_are_answered(served):
    for path in ("/play.js/../../x", "/..%2f..%2fetc/passwd", "/etc/passwd", "/hello", "/run"):
        assert served.ask(path, None, "GET").status in (404, 405)
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert served.ask("/hello", b"{}", method).status == 405


def test_every_answer_has_the_headers_that_keep_it_to_itself(served):
    for answer in (served.ask("/", None, "GET"), served.ask("/nowhere", None, "GET"), served.ask("/hello", Origin="null")):
        assert answer.getheader("Content-Security-Policy").startswith("default-src 'self'; ")
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert answer.getheader("Cache-Control") == "no-store"
        assert answer.getheader("Access-Control-Allow-Origin") is None
    assert served.key not in served.ask("/", None, "GET").read().decode()


def test_a_reader_who_goes_away_ends_the_run(served):
    answer = served.ask("/run", json.dumps(asked(served.session, max_new_tokens=2_000, temperature=5)).encode())
    assert json.loads(answer.readline())["type"] == "start"
    run = served.session._run
    answer.close()
    run.thread.join(30)
    assert not run.thread.is_alive()
    assert run.cancelled.is_set()


def test_a_reader_who_goes_away_before_the_run_has_begun_ends_it_too(session):
    pytest.importorskip("uvicorn", reason="needs the extra `play`")
    from psr_lens.apps.playground.server import lines

    arrived, let_go, cancelled = threading.Event(), threading.Event(), []

    class Slow:
        def start(self, asked: dict[str, Any], emit: Any) -> int:
            arrived.set()
            assert let_go.wait(30)
            return 7

        def cancel(self, number: int) -> None:
            cancelled.append(number)

    async def leave() -> None:
        reading = asyncio.ensure_future(anext(lines(Slow(), {}, asyncio.to_thread)))
        while not arrived.is_set():
            await asyncio.sleep(0.001)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        let_go.set()
        while not cancelled:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(leave(), 30))
    assert cancelled == [7]


def test_other_errors_reach_the_page(served, monkeypatch, capsys):
    monkeypatch.setattr(Session, "shown", property(lambda self: 1 / 0))
    answer = served.ask("/freeze")
    assert (answer.status, json.loads(answer.read())["message"]) == (500, "ZeroDivisionError: division by zero")
    assert "1 / 0" in capsys.readouterr().err


def test_an_end_during_a_run_is_quiet(organism, methods, capfd):
    pytest.importorskip("uvicorn", reason="needs the extra `play`")
    from psr_lens.apps.playground.server import Server

    server = Server(session_of(organism.model, pairs_of(organism.model, 2), methods, sampling=SAMPLED))
    host, key = re.fullmatch(r"http://(.*)/#key=(.*)", server.address).groups()
    with socket.create_connection(host.split(":"), timeout=5):  # listens before it answers
        pass
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    served = Served(server.address, host, key, server._session)
    answer = served.ask("/run", json.dumps(asked(served.session, max_new_tokens=2_000, temperature=5)).encode())
    assert json.loads(answer.readline())["type"] == "start"
    server.stop()
    *_, last = answer.read().splitlines()
    assert json.loads(last)["stopped"]
    thread.join(30)
    assert not thread.is_alive()
    assert capfd.readouterr().err == ""
