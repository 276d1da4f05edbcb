"""The playground: what its session says, whom its server answers, and the page in a real browser."""

import asyncio
import http.client
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from browser import Page, browser, missing
from helpers import assert_unchanged as assert_same_model
from helpers import pairs_of, random_replacement, state_of

import psr_lens as psr
from psr_lens.apps.playground import session as sessions
from psr_lens.apps.playground.frozen import frozen
from psr_lens.apps.playground.play import session_of
from psr_lens.apps.playground.request import Request
from psr_lens.apps.playground.session import Session
from psr_lens.errors import InputError, MissingPackageError
from psr_lens.generation.streaming import StreamedToken
from psr_lens.prompts.pair_builder import with_thought

ASKED = {"alphas": {"A": 1.0, "B <i>": 0.0}, "seed": 3, "temperature": 0.9, "max_new_tokens": 10}
SAMPLED = psr.SamplingConfig(seed=3, temperature=0.9, max_new_tokens=10)
EVIL = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def methods(organism) -> dict[str, psr.Replacement]:
    return {"A": random_replacement(organism.model, size=0.05), "B <i>": random_replacement(organism.model, layers=[2], seed=1)}


@pytest.fixture
def session(organism, methods) -> Iterator[Session]:
    made = session_of(organism.model, pairs_of(organism.model, 2), methods, sampling=SAMPLED)
    yield made
    made.stop()


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


# --- the session ------------------------------------------------------------------------------------------------------------


def test_a_run_says_what_generate_writes_and_its_python_repeats_it(session, organism, methods):
    before = state_of(organism.model)
    messages = run(session, asked(session, question="what is a 'bear' ?", run="mine"))
    assert [messages[0]["type"], messages[-1]] == ["start", {"type": "end", "run": "mine", "stopped": False}]
    pair = psr.prompt_pairs(organism.model, ["what is a 'bear' ?"], session.hello["instruction"])[0]
    assert answers(messages) == generated(organism.model, pair, methods, ASKED["alphas"])
    lines = messages[0]["python"].replace("...  # the model", "MODEL")
    lines = lines.replace("'A': ...", "'A': A").replace("'B <i>': ...", "'B <i>': B")
    said: list[str] = []
    values = {"MODEL": organism.model, "A": methods["A"], "B": methods["B <i>"], "print": lambda *parts: said.append(parts[-1])}
    exec(compile(lines, "copied", "exec"), values)
    assert said == list(answers(messages).values())
    assert_same_model(organism.model, before)


def test_a_second_run_cancels_the_first_and_stop_frees_the_model(session, organism):
    before, first = state_of(organism.model), []
    session.start(asked(session, max_new_tokens=2_000, temperature=5), first.append)
    while len(first) < 5:
        time.sleep(0.001)
    second = run(session, asked(session, columns=["none"]))
    assert first[-1]["type"] == "end"
    assert first[-1]["stopped"]
    assert second[-1] == {"type": "end", "run": second[0]["run"], "stopped": False}
    session.start(asked(session, max_new_tokens=2_000, temperature=5), first.append)
    session.stop()
    assert first[-1]["type"] == "end"
    assert first[-1]["stopped"]
    assert_same_model(organism.model, before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"question": " "}, "question: got ' '"),
        ({"question": None}, "question: got None"),
        ({"instruction": "x" * 20_001}, "instruction: got 'xxx"),
        ({"alphas": {"A": 1.0}}, "alphas: got"),
        ({"alphas": {"A": True, "B <i>": 1}}, r"alphas\['A'\]: got True"),
        ({"alphas": {"A": float("nan"), "B <i>": 1}}, r"alphas\['A'\]: got nan"),
        ({"alphas": {"A": 3.01, "B <i>": 1}}, r"alphas\['A'\]: got 3.01"),
        ({"alphas": {"A": 10**400, "B <i>": 1}}, r"alphas\['A'\]: got 1000"),
        ({"alphas": {"A": -(10**400), "B <i>": 1}}, r"alphas\['A'\]: got -1000"),
        ({"columns": ["C"]}, "columns: got"),
        ({"columns": []}, "columns: got"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": ""}, "seed: got ''"),
        ({"seed": "1.0"}, r"seed: got '1\.0'"),
        ({"seed": 10**400}, "seed: got 1000"),
        ({"temperature": None}, "temperature: got None"),
        ({"temperature": 10**400}, "temperature: got 1000"),
        ({"max_new_tokens": 2_049}, "max_new_tokens: got 2049"),
        ({"max_new_tokens": 1.5}, "max_new_tokens: got 1.5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_wrong_request_is_said_to_be_wrong(session, wrong, message):
    found = run(session, asked(session, **wrong))
    assert [each["type"] for each in found] == ["error"]
    assert re.search(message, found[0]["message"])


def test_inspecting_gives_the_models_own_probabilities(session, organism, methods):
    run(session, asked(session))
    triplet_ids = [each["token"] for each in run(session, asked(session, columns=["A"])) if each["type"] == "token"]
    assert triplet_ids
    found = session.inspect({"column": "A", "index": 2})
    pair = pairs_of(organism.model, 2)[0]
    ids = psr.generate(organism.model, [pair], methods["A"], sampling=SAMPLED)[0].ids[:2]
    tokens = torch.tensor([[*pair.base_ids, *ids]])
    with torch.no_grad():
        base = organism.model(tokens)[0, -1].softmax(-1)
        with methods["A"].steer(organism.model, start=len(pair.base_ids) - 1):
            here = organism.model(tokens)[0, -1].softmax(-1)
    for listed, wanted in ((found["here"], here), (found["base"], base)):
        shares, likeliest = wanted.topk(8)
        assert [share for _, share in listed] == pytest.approx(shares.tolist(), rel=1e-3, abs=1e-5)
        assert [name for name, _ in listed] == organism.model.tokenizer.convert_ids_to_tokens(likeliest)
    for column, index in (("A", 99), ("A", -1), ("A", True), ("C", 0), (None, 0)):
        with pytest.raises(InputError):
            session.inspect({"column": column, "index": index})


def test_what_is_shown_says_of_each_column_what_it_was_asked_with(session):
    run(session, asked(session, alphas={"A": 1.0, "B <i>": 1.0}, run="first"))
    messages = run(session, asked(session, alphas={"A": 0.2, "B <i>": 1.0}, columns=["A"], run="second"))
    shown = session.shown
    assert shown["hello"]["alphas"] == {"A": 0.2, "B <i>": 1.0}
    assert {name: each["alpha"] for name, each in shown["messages"][0]["asked"].items()} == {
        "none": None,
        "prompt": None,
        "A": 0.2,
        "B <i>": 1.0,
    }
    assert shown["messages"][0]["python"] == messages[0]["python"]
    assert "alpha = {'A': 0.2, 'B <i>': 1.0}" in messages[0]["python"]
    assert session.inspect({"run": "first", "column": "none", "index": 0})["base"]
    assert session.inspect({"run": "second", "column": "A", "index": 0})["here"]
    with pytest.raises(InputError, match="run: got 'first', expected 'second'"):
        session.inspect({"run": "first", "column": "A", "index": 0})
    run(session, asked(session, columns=["B <i>"], seed=str(2**53 + 1)))  # other settings: the others' answers are no more
    shown = session.shown
    assert (shown["hello"]["seed"], list(shown["messages"][0]["asked"])) == (str(2**53 + 1), ["B <i>"])
    with pytest.raises(InputError, match="column: got 'A'"):
        session.inspect({"column": "A", "index": 0})


def test_a_thought_is_not_put_before_another_question(organism, methods):
    pairs = [with_thought(pair, pair.base_ids[-2:]) for pair in pairs_of(organism.model, 2)]
    session = session_of(organism.model, pairs, methods, sampling=SAMPLED)
    (error,) = run(session, asked(session, question="what is a bear ?"))
    assert "psr.think" in error["message"]
    messages = run(session, asked(session, question=pairs[1].question, columns=["none"]))
    assert answers(messages) == {"none": psr.generate(organism.model, [pairs[1]], sampling=SAMPLED)[0].text}
    assert "psr.think" in messages[0]["python"]
    assert session._pair(Request.of(asked(session, instruction="be loud ."), ["A", "B <i>"], ["A"], SAMPLED)).thought_ids


def test_columns_of_the_map_go_from_the_lowest_layer_up(organism):
    sites = random_replacement(organism.model).sites
    turned = type(random_replacement(organism.model))(
        **{**vars(random_replacement(organism.model)), "sites": dict(reversed(sites.items()))}
    )
    session = session_of(organism.model, pairs_of(organism.model, 1), {"A": turned})
    assert session.hello["columns"][2]["points"] == [f"blocks.{layer}.hook_resid_post" for layer in range(6)]


@pytest.mark.parametrize(("alpha", "message"), [(3.2, r"alpha: got 3\.2"), ({"A": 1, "B <i>": -2}, r"alpha\['B <i>'\]: got -2")])
def test_a_strength_that_no_slider_has_is_refused(organism, methods, alpha, message):
    with pytest.raises(InputError, match=message):
        session_of(organism.model, pairs_of(organism.model, 1), methods, alpha=alpha)


def test_a_method_called_model_does_not_hide_how_the_model_is_loaded(organism, methods):
    named = {"model": methods["A"]}
    session = session_of(organism.model, pairs_of(organism.model, 1), named, load_model="load()", loads={"model": "read()"})
    (start, *_) = run(session, {**asked(session), "alphas": {"model": 1.0}, "columns": ["none"]})
    assert "\nmodel = load()\n" in start["python"]
    assert "'model': read()," in start["python"]


def test_play_needs_pairs_or_a_question_with_its_instruction(organism, methods):
    with pytest.raises(InputError, match="instruction: got None"):
        session_of(organism.model, "what is a bear ?", methods)
    with pytest.raises(InputError, match="instruction: got 'x'"):
        session_of(organism.model, pairs_of(organism.model, 1), methods, instruction="x")
    assert session_of(organism.model, "what is a bear ?", methods, instruction="be brief .").hello["question"] == "what is a bear ?"


def test_without_its_packages_play_says_how_to_install_them(organism, methods, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(MissingPackageError, match=r"psr-lens\[play\]"):
        psr.play(organism.model, pairs_of(organism.model, 1), methods)


# --- the widget -------------------------------------------------------------------------------------------------------------


def test_the_widget_answers_what_a_notebook_sends(organism, methods, monkeypatch):
    pytest.importorskip("anywidget", reason="needs the extra `play`")
    widget = psr.play(organism.model, pairs_of(organism.model, 1), methods, sampling=SAMPLED)
    said, ended = [], threading.Event()

    def send(content: Any, buffers: Any = None) -> None:
        said.append(content)
        if content.get("type") in ("end", "error"):
            ended.set()

    monkeypatch.setattr(widget, "send", send)
    request = {"question": widget.hello["question"], "instruction": widget.hello["instruction"], **ASKED}
    widget._hear(widget, {"type": "run", "asked": request}, [])
    assert ended.wait(60)
    assert answers(said) == generated(organism.model, pairs_of(organism.model, 1)[0], methods, ASKED["alphas"])
    widget._hear(widget, {"type": "inspect", "reply": "1", "asked": {"column": "A", "index": 0}}, [])
    assert (said[-1]["reply"], len(said[-1]["content"]["here"])) == ("1", 8)
    widget._hear(widget, {"type": "inspect", "reply": "2", "asked": {"column": "C", "index": 0}}, [])
    assert said[-1]["content"]["type"] == "error"
    monkeypatch.setattr(Session, "shown", property(lambda self: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        widget._hear(widget, {"type": "freeze", "reply": "3"}, [])
    assert said[-1] == {"reply": "3", "content": {"type": "error", "message": "ZeroDivisionError: division by zero"}}
    widget._hear(widget, {"type": "stop"}, [])
    widget.close()


# --- the server -------------------------------------------------------------------------------------------------------------


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


# --- the page ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if why := missing():
        pytest.skip(why)
    with browser() as tab:
        yield tab


@pytest.fixture
def opened(page, served) -> Page:
    page.show(served.address, 1440)
    page.wait_for("document.querySelector('.psr-run')")
    return page


COLUMN = "[each.dataset.column, each.querySelector('.psr-answer').textContent]"
TEXTS = f"Object.fromEntries([...document.querySelectorAll('.psr-column')].map((each) => {COLUMN}))"
STATUS = "document.querySelector('.psr-status').textContent"


def press(page: Page, name: str, code: int, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        more = {"text": text} if text and kind == "keyDown" else {}
        page.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code, **more)


def test_the_page_shows_what_generate_writes_at_each_strength(opened, served, organism, methods):
    pair = pairs_of(organism.model, 2)[0]
    opened.js("document.querySelector('.psr-run').click()")
    opened.wait_for(f"{STATUS} === 'Done.'")
    assert opened.js(TEXTS) == generated(organism.model, pair, methods, {"A": 1.0, "B <i>": 1.0})
    slider = "document.querySelector('[data-column=\"A\"] input[type=range]')"
    opened.js(f"{slider}.focus()")
    for _ in range(20):  # twenty steps of 0.05, by keyboard
        press(opened, "ArrowLeft", 37)
    opened.wait_for(f"{STATUS} === 'Done.' && document.querySelector('output').textContent === '0.00'")
    opened.wait_for("!document.querySelector('.psr-going')")
    texts = opened.js(TEXTS)
    assert texts["A"] == texts["none"]
    opened.js("document.querySelector('[data-column=\"prompt\"] .psr-token').focus()")
    press(opened, "ArrowRight", 39)
    press(opened, "Enter", 13, "\r")
    opened.wait_for("document.querySelectorAll('.psr-next li').length === 16")
    assert opened.js("document.querySelectorAll('.psr-profile li').length") == organism.model.cfg.n_layers
    assert opened.js("[...document.querySelectorAll('.psr-map')].slice(1).map((each) => each.height)") == [6, 6, 1]
    assert opened.errors == []
    hosts = opened.js("performance.getEntriesByType('resource').map((each) => new URL(each.name).host)")
    assert set(hosts) == {served.host}


def test_a_slider_after_other_settings_answers_anew_in_every_column(opened):
    opened.js("document.querySelector('.psr-run').click()")
    opened.wait_for(f"{STATUS} === 'Done.'")
    opened.js("HTMLAnchorElement.prototype.click = () => {}; URL.createObjectURL = (blob) => { window.saved = blob; return '' }")
    opened.js("document.querySelector('[name=seed]').value = 9; document.querySelector('[name=json]').click()")
    saved = json.loads(opened.js("saved.text()"))  # what was asked, not what the form says now
    assert {key: saved["columns"]["A"][key] for key in ("alpha", "seed", "max_new_tokens")} == {
        "alpha": 1,
        "seed": "3",
        "max_new_tokens": 10,
    }
    assert saved["columns"]["A"]["answer"] == opened.js(TEXTS)["A"]
    slider = "document.querySelector('[data-column=\"A\"] input[type=range]')"
    turn = f"{slider}.value = 2; for (const kind of ['input', 'change']) {slider}.dispatchEvent(new Event(kind))"
    opened.js(f"document.querySelector('[name=max_new_tokens]').value = ''; {turn}")
    assert not opened.js("document.querySelector('.psr-going')")  # an empty field is not 0
    opened.js("document.querySelector('[data-column=\"A\"] .psr-token').focus()")
    opened.js(f"document.querySelector('[name=max_new_tokens]').value = 2; {turn}")
    opened.wait_for(f"{STATUS} === 'Done.' && !document.querySelector('.psr-going')")
    assert opened.js("[...document.querySelectorAll('.psr-answer')].every((each) => each.children.length === 2)")
    assert opened.js("document.activeElement.closest('section').dataset.column") == "A"  # the token is no more; its column still is
    press(opened, "ArrowRight", 39)
    assert opened.js("document.activeElement.getAttribute('aria-label')").startswith("token 1: ")
    assert opened.errors == []


def test_stop_and_a_second_run(opened):
    opened.js(
        "document.querySelector('[name=max_new_tokens]').value = 2000; document.querySelector('[name=temperature]').value = 5"
    )
    opened.js("document.querySelector('.psr-run').click()")
    opened.wait_for("document.querySelectorAll('.psr-token').length > 3")
    opened.js("document.querySelector('[name=max_new_tokens]').value = 3; document.querySelector('.psr-run').click()")
    opened.wait_for(f"{STATUS} === 'Done.'")
    assert opened.js("[...document.querySelectorAll('.psr-answer')].every((each) => each.children.length <= 3)")
    opened.js("document.querySelector('[name=max_new_tokens]').value = 2000; document.querySelector('.psr-run').click()")
    opened.wait_for("document.querySelectorAll('.psr-token').length > 3")
    halt = "document.querySelectorAll('.psr-buttons button')[1]"
    opened.js(f"{halt}.focus(); {halt}.click()")
    opened.wait_for(f"{STATUS} === 'Stopped.'")
    assert opened.js("document.activeElement.className") == "psr-run"
    assert opened.errors == []


class _Every(dict):
    def __missing__(self, key: str) -> float:
        return 1.0


def test_an_error_of_the_page_is_not_said_to_be_the_servers(opened):
    opened.js("window.requestAnimationFrame = () => { throw new Error('no frame') }; document.querySelector('.psr-run').click()")
    opened.wait_for(f"{STATUS} === 'The page cannot draw this: no frame'")
    opened.wait_for("!document.querySelector('.psr-going')")


def test_what_a_model_writes_stays_text(opened, served, monkeypatch, tmp_path):
    monkeypatch.setattr(sessions, "stream", lambda *given, **named: (token for token in _evil(named["columns"])))
    monkeypatch.setattr(Session, "_spelled", lambda self, ids: [EVIL] * len(ids))
    title = opened.js("document.title")
    opened.js("document.querySelector('.psr-run').click()")
    opened.wait_for(f"{STATUS} === 'Done.'")
    opened.js("document.querySelector('[data-column=\"A\"] .psr-token').click()")
    opened.wait_for("document.querySelectorAll('.psr-next li').length > 3")
    assert opened.js(TEXTS) == dict.fromkeys(["none", "prompt", "A", "B <i>"], EVIL)
    assert opened.js("document.querySelectorAll('main img, main script, main i').length") == 0
    path = tmp_path / "frozen.html"
    path.write_text(frozen(served.session.shown), encoding="utf-8")
    opened.open(path, 390)
    opened.wait_for(f"{STATUS} === 'Done.'")
    assert opened.js(TEXTS) == dict.fromkeys(["none", "prompt", "A", "B <i>"], EVIL)
    opened.js("document.querySelector('[data-column=\"A\"] .psr-token').click()")
    opened.wait_for("document.querySelectorAll('.psr-next li').length > 3")
    assert opened.js("document.title") == title
    assert opened.js("document.documentElement.scrollWidth") <= 390
    assert opened.errors == []


def _evil(columns):
    for name in columns:
        yield StreamedToken(name, 0, 10, EVIL, EVIL, _Every(), True)


def test_a_frozen_page_of_one_column_shows_its_run_and_nothing_moves(page, session, tmp_path):
    run(session, asked(session, alphas={"A": 1.0, "B <i>": 0.337}))
    messages = run(session, asked(session, alphas={"A": 0.2, "B <i>": 0.337}, columns=["A"]))
    open_frozen(page, session.shown, tmp_path)
    assert page.js(TEXTS)["A"] == answers(messages)["A"]
    assert page.js("[...document.querySelectorAll('output')].map((each) => each.textContent)") == ["0.20", "0.337"]
    assert page.js("[...document.querySelectorAll('input, select[name=questions]')].every((each) => each.disabled)")
    assert page.js("[...document.querySelectorAll('textarea')].every((each) => each.readOnly && !each.disabled)")
    heard = page.js("document.querySelector('[data-column=\"A\"] .psr-heard').textContent")
    assert heard == f"Answer of A: {answers(messages)['A']}"
    alone = session_of(session._model, pairs_of(session._model, 1), {"A": session._methods["A"]}, sampling=SAMPLED)
    messages = run(alone, {**asked(alone), "alphas": {"A": 1}, "columns": ["A"]})
    open_frozen(page, alone.shown, tmp_path)
    assert page.js(TEXTS) == {"none": "", "prompt": "", **answers(messages)}
    assert page.errors == []


def test_colours_compare_with_the_tokens_that_are_pushed_at_all(page, session, tmp_path):
    shown = {"hello": session.hello, "messages": [{"type": "start", "asked": {}, "python": ""}]}
    texts = (("do", "do"), (" n", "do n"), ("n't", "don't"), (" x", "don't x"), (" y", "don't x y"))  # changes its mind once
    for index, (text, answer) in enumerate(texts):
        push = [4.0 if index == 1 else 1.0 if index == 3 else 0.0] * 6
        content = {"index": index, "text": text, "answer": answer, "token": text, "magnitudes": push, "last": index == 4}
        shown["messages"].append({"type": "token", "column": "A", **content})
    open_frozen(page, {**shown, "messages": [*shown["messages"], {"type": "end", "stopped": False}]}, tmp_path)
    assert page.js(TEXTS)["A"] == "don't x y"
    tokens = "[...document.querySelectorAll('[data-column=\"A\"] .psr-token')]"
    shares = page.js(f"{tokens}.map((each) => Number(each.style.getPropertyValue('--psr-push')))")
    assert shares == [0.5, 0.0, 0.125, 0.0, 0.0]  # twice the median of 1 and 4, the higher of the two, is the full colour
    assert page.js(f"{tokens}[0].title") == "do  ‖Δ‖ / median 1.00"


def open_frozen(page: Page, shown: dict[str, Any], folder: Path) -> None:
    path = folder / "frozen.html"
    path.write_text(frozen(shown), encoding="utf-8")
    page.open(path, 1440)
    page.wait_for(f"{STATUS} === 'Done.'")


def test_a_wrong_key_is_said_on_the_page(page, served):
    page.show(served.address[:-1] + ("A" if served.address[-1] != "A" else "B"), 390)
    page.wait_for("document.querySelector('[role=alert]')")
    assert "key is missing or wrong" in page.js("document.body.textContent")
