"""The playground: what its session says, and the widget."""

import re
import sys
import threading
import time
from typing import Any

import pytest
import torch
from helpers import assert_unchanged as assert_same_model
from helpers import pairs_of, random_replacement, state_of
from playground_runs import ASKED, SAMPLED, answers, asked, generated, run

import psr_lens as psr
from psr_lens.apps.playground.play import session_of
from psr_lens.apps.playground.request import Request
from psr_lens.apps.playground.session import Session
from psr_lens.errors import InputError, MissingPackageError
from psr_lens.prompts.pair_builder import with_thought


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
