"""The playground's page in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import WIDTHS, Page, browser, missing
from helpers import pairs_of
from playground_runs import EVIL, SAMPLED, answers, asked, generated, run

from psr_lens.apps.playground import session as sessions
from psr_lens.apps.playground.frozen import frozen
from psr_lens.apps.playground.play import session_of
from psr_lens.apps.playground.session import Session
from psr_lens.generation.streaming import StreamedToken

pytestmark = pytest.mark.slow


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


def reach(page: Page, what: str) -> None:
    """Go from control to control with the Tab key."""
    for _ in range(80):
        press(page, "Tab", 9)
        if page.js(f"document.activeElement.matches({json.dumps(what)})"):
            return
    raise AssertionError(f"the Tab key does not lead to {what}")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_keyboard_is_enough_and_the_page_is_dark_and_as_wide_as_the_screen(page, served, organism, methods, width):
    pair = pairs_of(organism.model, 2)[0]
    page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    try:
        page.show(served.address, width)
        page.wait_for("document.querySelector('.psr-run')")
        reach(page, ".psr-run")
        press(page, "Enter", 13, "\r")
        page.wait_for(f"{STATUS} === 'Done.'")
        reach(page, "[data-column=A] input[type=range]")
        press(page, "ArrowRight", 39)
        page.wait_for(f"{STATUS} === 'Done.' && document.querySelector('[data-column=A] output').textContent === '1.05'")
        page.wait_for("!document.querySelector('.psr-going')")
        assert page.js(TEXTS) == generated(organism.model, pair, methods, {"A": 1.05, "B <i>": 1.0})
        reach(page, "[data-column=A] .psr-token")
        press(page, "Enter", 13, "\r")
        page.wait_for("document.querySelectorAll('.psr-next li').length === 16")
        style = "getComputedStyle(document.querySelector('.psr-play'))"
        paper, ink = (page.js(f"{style}.{which}.match(/[\\d.]+/g).map(Number)") for which in ("backgroundColor", "color"))
        assert max(paper[:3]) < 80 < 200 < min(ink[:3])
        assert len(paper) == 3  # and not transparent
        assert page.js("document.documentElement.scrollWidth") <= width
        assert page.errors == []
    finally:
        page.send("Emulation.setEmulatedMedia", features=[])


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


def test_runs_begin_in_the_order_in_which_they_were_asked_though_requests_overtake_each_other(opened, organism, methods):
    opened.js(
        "window.sent = 0; const real = fetch;"
        "window.fetch = (path, settings) => path !== '/run' ? real(path, settings)"
        " : new Promise((go) => setTimeout(go, window.sent++ ? 0 : 300)).then(() => real(path, settings))"
    )
    slider = "document.querySelector('[data-column=\"A\"] input[type=range]')"
    turns = "".join(
        f"{slider}.value = {alpha}; for (const kind of ['input', 'change']) {slider}.dispatchEvent(new Event(kind));"
        for alpha in (0, 0.5, 2)
    )
    run, halt = (f"document.querySelectorAll('.psr-buttons button')[{which}].click();" for which in (0, 1))
    opened.js(run)
    opened.js(turns + run * 2)
    opened.wait_for(f"{STATUS} === 'Done.'")
    assert opened.js("window.sent") == 2  # of those that waited, the last alone
    assert opened.js(TEXTS) == generated(organism.model, pairs_of(organism.model, 2)[0], methods, {"A": 2.0, "B <i>": 1.0})
    opened.js(f"window.sent = 0; {run}")
    opened.js(run + halt)
    opened.wait_for(f"{STATUS} === 'Stopped.'")
    opened.wait_for("!document.querySelector('.psr-going')")
    assert opened.js("window.sent") == 1
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
        yield StreamedToken(name, 0, 10, EVIL, EVIL, _Every(), _Every(), True)


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
        turn = [-0.5 if index == 3 else 1.0] * 6
        content = {"index": index, "text": text, "answer": answer, "token": text, "magnitudes": push, "cosines": turn}
        shown["messages"].append({"type": "token", "column": "A", "last": index == 4, **content})
    open_frozen(page, {**shown, "messages": [*shown["messages"], {"type": "end", "stopped": False}]}, tmp_path)
    assert page.js(TEXTS)["A"] == "don't x y"
    tokens = "[...document.querySelectorAll('[data-column=\"A\"] .psr-token')]"
    shares = page.js(f"{tokens}.map((each) => Number(each.style.getPropertyValue('--psr-push')))")
    assert shares == [0.5, 0.0, 0.125, 0.0, 0.0]  # twice the median of 1 and 4, the higher of the two, is the full colour
    assert page.js(f"{tokens}[0].title") == "do  ‖Δ‖ / median 1.00"
    page.js("const list = document.querySelector('[name=scale]'); list.value = 'cosine'; list.dispatchEvent(new Event('change'))")
    shares = page.js(f"{tokens}.map((each) => Number(each.style.getPropertyValue('--psr-push')))")
    assert shares == [1.0, 1.0, 0.5, 1.0, 0.0]  # the last token is not read
    assert page.js(f"{tokens}.map((each) => each.classList.contains('psr-against'))") == [False, False, True, False, False]
    assert page.js(f"{tokens}[2].title") == "n't  cosine -0.500"
    page.wait_for(f"new Set({tokens}.map((each) => getComputedStyle(each).backgroundColor)).size === 3")  # colours fade in


def open_frozen(page: Page, shown: dict[str, Any], folder: Path) -> None:
    path = folder / "frozen.html"
    path.write_text(frozen(shown), encoding="utf-8")
    page.open(path, 1440)
    page.wait_for(f"{STATUS} === 'Done.'")


def test_a_wrong_key_is_said_on_the_page(page, served):
    page.show(served.address[:-1] + ("A" if served.address[-1] != "A" else "B"), 390)
    page.wait_for("document.querySelector('[role=alert]')")
    assert "key is missing or wrong" in page.js("document.body.textContent")
