"""Playgrounds on the organism: a session, its runs, and a server that runs."""

import http.client
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from helpers import pairs_of

import psr_lens as psr
from psr_lens.apps.playground.play import session_of
from psr_lens.apps.playground.session import Session

ASKED = {"alphas": {"A": 1.0, "B <i>": 0.0}, "seed": 3, "temperature": 0.9, "max_new_tokens": 10}
SAMPLED = psr.SamplingConfig(seed=3, temperature=0.9, max_new_tokens=10)
EVIL = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


def begun(model, methods) -> Session:
    return session_of(model, pairs_of(model, 2), methods, sampling=SAMPLED)


def asked(session: Session, **more: Any) -> dict[str, Any]:
    return {"question": session.hello["question"], "instruction": session.hello["instruction"], **ASKED, **more}


def run(session: Session, request: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    ended = threading.Event()

    def emit(message: dict[str, Any]) -> None:
        found.append(message)
        if message["type"] in ("end", "error"):
            ended.set()

    session.start(request, emit)
    assert ended.wait(60)
    return found


def answers(messages: list[dict[str, Any]]) -> dict[str, str]:
    return {each["column"]: each["answer"] for each in messages if each["type"] == "token"}


def generated(model, pair, methods, alphas) -> dict[str, str]:
    return {
        "none": psr.generate(model, [pair], sampling=SAMPLED)[0].text,
        "prompt": psr.generate(model, [pair], context="prompted", sampling=SAMPLED)[0].text,
        **{name: psr.generate(model, [pair], each, alpha=alphas[name], sampling=SAMPLED)[0].text for name, each in methods.items()},
    }


class Served(NamedTuple):
    """A server that runs."""

    address: str
    host: str
    key: str
    session: Session

    def ask(self, path: str, body: bytes | None = b"{}", method: str = "POST", **headers: str | None) -> http.client.HTTPResponse:
        """A request as the page makes it, with some headers changed or, if None, left out."""
        given = {
            "Host": self.host,
            "Origin": f"http://{self.host}",
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection = http.client.HTTPConnection(self.host, timeout=30)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            if value is not None:
                connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(body or b"")))
        connection.endheaders(body)
        return connection.getresponse()


@contextmanager
def serving(session: Session) -> Iterator[Served]:
    """A server in a thread of its own."""
    from psr_lens.apps.playground.server import Server

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
