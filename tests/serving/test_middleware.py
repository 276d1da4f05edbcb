"""The middleware of vLLM's HTTP server, before an application that is none of vLLM's."""

import asyncio
import json
import sys
import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from psr_lens.errors import InputError, ModelError
from psr_lens.replacement import Replacement, Site
from psr_lens.serving.about_engine import AboutEngine
from psr_lens.serving.middleware import STEERED, Engine, SteeredModels, steered_body
from psr_lens.serving.served import served_by

PATH = "/v1/completions"
ABOUT = AboutEngine("vllm 1, float32, abc", "float32", 3, 128, 300, 96)


class HttpError(Exception):
    """In place of fastapi's, which need not be installed here."""

    def __init__(self, status_code: int, detail: str) -> None:
        super().__init__(status_code, detail)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An engine with two names for its model, of which one goes on in the other."""
    root = tmp_path_factory.mktemp("artifacts")
    site = Site(torch.ones(1, 8), torch.ones(1, 8), torch.ones(1), "relu")
    folders = {}
    for name, span, start in (("pirate", "R", None), ("question", "QR", 40)):
        made = Replacement({"blocks.0.hook_resid_post": site}, span, "random", {}, question_start=start)
        folders[name] = str(made.save(root / name))
    return Engine(["base", "base+large"], served_by({"psr": folders}), has_plugin=True)


def test_names_become_arguments(engine):
    for model, base, names, strengths in (
        ("base+pirate", "base", ["pirate"], [1.0]),
        ("base+pirate@0.8", "base", ["pirate"], [0.8]),
        ("base+pirate@-2+question@1e-1", "base", ["pirate", "question"], [-2.0, 0.1]),
        ("base+large+pirate@.5", "base+large", ["pirate"], [0.5]),
    ):
        body = {"model": model, "prompt": "a", "vllm_xargs": {"other": 1}}
        expected = {"model": base, "prompt": "a", "vllm_xargs": {"other": 1, "psr": names, "psr_alpha": strengths}}
        for path in STEERED:
            assert steered_body(body, path, engine) == expected
        assert body["model"] == model  # what was given is as it was


@pytest.mark.parametrize(
    "body",
    [
        {"model": "base", "prompt": "a"},
        {"model": "base+large"},
        {"model": "nobody+else"},
        {"model": None, "vllm_xargs": None},
        {"model": 3, "vllm_xargs": [], "metadata": {"psr": "mine"}},
        {"model": "base", "metadata": {"psr": "mine", "vllm_xargs": {"psr": "mine"}}, "stop": ["psr"], "prompt": "psr"},
        {"model": "base", "response_format": {"type": "json_schema", "json_schema": {"name": "psr", "schema": {"psr": {}}}}},
        {"model": "base", "vllm_xargs": {"psr": "pirate", "psr_start_R": 400}},  # how long the prompt is, is not known yet
        {"model": "base", "vllm_xargs": {"psr": "question"}},
        {"model": "base", "vllm_xargs": {"psr": "question"}, "echo": True, "logprobs": 1},  # its start is known
        {"model": "base", "vllm_xargs": {"psr": "pirate", "psr_start_R": 3}, "echo": True, "logprobs": 1},
        {"model": "base", "vllm_xargs": {"psr": "pirate"}, "logprobs": 1},
        {"model": "base", "vllm_xargs": {"psr": "pirate"}, "echo": True},
        {"model": "base", "echo": True, "logprobs": 1},
        [],
        "base+pirate",
        None,
    ],
)
def test_other_requests_are_left_as_they_are(body, engine):
    assert steered_body(body, PATH, engine) is body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "base+parrot"}, "psr: got 'parrot', expected one of the replacements that are served: 'pirate', 'question'"),
        ({"model": "base+pirate@0,8"}, "model: got 'base+pirate@0,8', expected a number of at most 40 characters as the strength"),
        ({"model": "base+pirate@٣"}, "expected a number of at most 40 characters"),
        ({"model": "base+pirate@1_0"}, "expected a number of at most 40 characters"),
        ({"model": "base+pirate@ 1"}, "expected a number of at most 40 characters"),
        ({"model": "base+pirate@1@2"}, "expected a number of at most 40 characters"),
        ({"model": "base+pirate@0." + 39 * "1"}, "expected a number of at most 40 characters"),
        ({"model": "base+pirate@1e31"}, "strengths of at most"),
        (
            {"model": "base+pirate", "echo": True, "logprobs": 0},
            "psr_start_R: got None, expected the first steered position in a request",
        ),
        ({"model": "base+pirate", "prompt_logprobs": 0}, "psr_start_R: got None, expected the first steered position in a request"),
        ({"model": "other+pirate"}, "model: got 'other+pirate', expected one of 'base', 'base+large' before the first '+'"),
        (
            {"model": "base+pirate", "vllm_xargs": {"psr": "pirate"}},
            "model: got 'base+pirate', expected replacements either there or",
        ),
        ({"model": "base+pirate", "vllm_xargs": ["psr"]}, "vllm_xargs: got ['psr'], expected a mapping"),
        ({"model": "base+pirate", "vllm_xargs": {"PSR": 1}}, "extra_args: got the unknown name 'PSR'"),
        (
            {"model": "base", "vllm_xargs": {"psr": "pirate", "psr_start_R": -1}},
            "psr_start_R: got -1, expected a position in the prompt, co",
        ),
        (
            {"psr": "pirate"},
            "psr: got it in the request's body, expected it in 'vllm_xargs'. With the openai client, `extra_body={'vllm",
        ),
        ({"Psr_alpha": 1}, "psr: got it in the request's body"),
        ({"extra_body": {"vllm_xargs": {"psr": "pirate"}}}, "psr: got it in 'extra_body'"),
        ({"extra_args": {"psr": "pirate"}}, "psr: got it in 'extra_args'"),
        ({"sampling_params": {"vllm_xargs": {"psr": "pirate"}}}, "psr: got it in 'sampling_params'"),
        ({"model": "base", "vllm_xarg": {"psr": "pirate"}}, "psr: got it in 'vllm_xarg', expected it in 'vllm_xargs'. With"),
        ({"model": "base", "vllm-xargs": {"psr": "pirate"}, "vllm_xargs": {"psr": "pirate"}}, "psr: got it in 'vllm-xargs'"),
        ({"model": "base", "VLLM_XARGS": {"psr_alpha": 1}, "metadata": {"psr": "mine"}}, "psr: got it in 'VLLM_XARGS'"),
        ({"model": "base", "steering": {"PSR": "pirate"}}, "psr: got it in 'steering'"),
        ({f"{9 * 'steer'}{each}{9 * 'ing'}": {each: "pirate"} for each in ("psr", "no")}, "psr: got it in 'steer"),
    ],
)
def test_what_would_be_answered_otherwise_than_meant_is_refused(body, message, engine):
    with pytest.raises(InputError) as caught:
        steered_body(body, PATH, engine)
    assert message in str(caught.value)


def test_echo_scores_the_prompt_of_a_chat_by_itself(engine):
    chat, steering = "/v1/chat/completions", {"psr": "pirate"}
    for more in ({}, {"logprobs": True}, {"top_logprobs": 0}, {"logprobs": True, "top_logprobs": 2}):
        body = {"model": "base", "vllm_xargs": steering, "echo": True} | more
        with pytest.raises(InputError, match="psr_start_R: got None, expected the first steered position in a request"):
            steered_body(body, chat, engine)
        told = body | {"vllm_xargs": steering | {"psr_start_R": 3}}
        assert steered_body(told, chat, engine) is told
    for body in (
        {"model": "base", "vllm_xargs": steering, "logprobs": True, "top_logprobs": 2},
        {"model": "base", "vllm_xargs": steering, "echo": False},
        {"model": "base", "vllm_xargs": steering, "echo": True, "top_logprobs": None},
    ):
        assert steered_body(body, chat, engine) is body


def test_a_long_text_as_strength_is_refused_at_once(engine):
    begun = time.perf_counter()
    for text in (10**6 * "9" + "x", 10**6 * "9", "-" + 10**6 * "9" + "." + 10**6 * "9" + "e"):
        with pytest.raises(InputError, match="expected a number of at most 40 characters"):
            steered_body({"model": f"base+pirate@{text}"}, PATH, engine)
    assert time.perf_counter() - begun < 1
    for text in ("1", "1.", ".5", "1.5", "-1.5e-3", "1E2"):
        strengths = steered_body({"model": f"base+pirate@{text}"}, PATH, engine)["vllm_xargs"]["psr_alpha"]
        assert strengths == [float(text)]


def test_paths_that_drop_arguments_and_servers_without_the_plugin_steer_nothing(engine):
    for body in ({"model": "base+pirate"}, {"model": "base", "vllm_xargs": {"psr": "pirate"}}):
        with pytest.raises(InputError, match="path: got '/v1/chat/completions/batch', expected one of /v1/completions, "):
            steered_body(body, "/v1/chat/completions/batch", engine)
        with pytest.raises(ModelError, match="the plugin of psr_lens is not in force"):
            steered_body(body, PATH, engine._replace(served=None, has_plugin=False))
        with pytest.raises(InputError, match="this engine serves none"):
            steered_body(body, PATH, engine._replace(served=None))


@pytest.fixture
def ask(engine, monkeypatch):
    """`ask(messages)`: what an application behind the middleware reads; `ask(path=…, answer=…)`: what its answer becomes."""
    monkeypatch.setitem(sys.modules, "fastapi", SimpleNamespace(HTTPException=HttpError))
    processor = SimpleNamespace(_psr_served=engine.served)
    models = SimpleNamespace(base_model_paths=[SimpleNamespace(name=name) for name in engine.bases])
    state = SimpleNamespace(
        openai_serving_models=models, engine_client=SimpleNamespace(input_processor=processor), vllm_config=None
    )
    monkeypatch.setattr("psr_lens.serving.middleware.about_engine", lambda config: ABOUT)

    def asked(given=(), *, method="POST", path=PATH, answer=()):
        incoming, read, sent = list(given), [], []

        async def receive():
            return incoming.pop(0)

        async def send(message):
            sent.append(message)

        async def app(scope, receive, send):
            for _ in range(2 if given else 0):
                read.append(await receive())
            for message in answer:
                await send(message)

        scope = {"type": "http", "method": method, "path": path, "app": SimpleNamespace(state=state)}
        asyncio.run(SteeredModels(app)(scope, receive, send))
        return read or sent

    return asked


def body(content, more=False):
    return {"type": "http.request", "body": content, "more_body": more}


GONE = {"type": "http.disconnect"}


def test_a_body_in_parts_is_read_whole_and_what_follows_it_is_passed_on(ask):
    raw = json.dumps({"model": "base+pirate", "prompt": "é\ud800", "top_p": 0.1}).encode()
    first, second = ask([body(raw[:9], True), body(b"", True), body(raw[9:]), GONE])
    assert json.loads(first["body"]) == json.loads(raw) | {"model": "base", "vllm_xargs": {"psr": ["pirate"], "psr_alpha": [1.0]}}
    assert first["more_body"] is False
    assert second == GONE


@pytest.mark.parametrize("raw", [b'{"model" : "base"}', b"", b"{", b"\xff", b"name=base%2Bpirate", b"[1" + b"0" * 5000 + b"]"])
def test_other_bodies_are_passed_on_to_the_byte(raw, ask):
    assert ask([body(raw), GONE]) == [body(raw), GONE]


def test_one_who_goes_away_while_the_body_is_sent_is_not_waited_for(ask):
    assert ask([body(b'{"mod', True), GONE, GONE]) == [GONE, GONE]


def test_refusals_have_status_400_and_come_when_the_body_is_read(ask):
    """So not before the key of the API was checked."""
    for raw, message in (
        (b'{"model": "base+parrot"}', "psr: got 'parrot'"),
        (b"[" * 200_000, "body: got JSON that is nested too deeply."),
    ):
        with pytest.raises(HttpError) as caught:
            ask([body(raw), GONE])
        assert caught.value.args[0] == 400
        assert caught.value.args[1].startswith(message)
        assert ask(answer=[GONE]) == [GONE]  # nothing was read


def test_models_are_listed_with_what_each_name_does(ask, engine):
    cards = {"object": "list", "data": [{"id": "base", "parent": None, "root": "x"}]}
    raw = json.dumps(cards).encode()
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3"), (b"x-request-id", b"7")]}
    answer = [
        start,
        {"type": "http.response.body", "body": raw[:5], "more_body": True},
        {"type": "http.response.body", "body": raw[5:]},
    ]
    begun, sent = ask(method="GET", path="/v1/models", answer=answer)
    listed = json.loads(sent["body"])
    assert [card["id"] for card in listed["data"]] == ["base", "base+pirate", "base+question"]
    assert listed["data"][0] == cards["data"][0] | {"psr_engine": asdict(ABOUT)}
    assert listed["data"][1] == {"id": "base+pirate", "parent": "base", "root": "x", "psr": engine.served.digests["pirate"]}
    assert begun["headers"] == [(b"x-request-id", b"7"), (b"content-length", str(len(sent["body"])).encode())]
    packed = [
        {**start, "headers": [(b"Content-Encoding", b"gzip"), (b"content-length", b"3")]},
        {"type": "http.response.body", "body": b"\x1f\x8b\x08"},
    ]
    assert ask(method="GET", path="/v1/models", answer=packed) == packed
    refused = [{**start, "status": 401}, {"type": "http.response.body", "body": b"no"}]
    assert ask(method="GET", path="/v1/models", answer=refused)[1]["body"] == b"no"
    assert ask(method="GET", path="/health", answer=refused) == refused
