"""vLLM's own OpenAI server with the plugin, asked by the openai client."""

import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own")

import httpx
import openai
from helpers import pairs_of, random_replacement
from vllm_server import vllm_server

import psr_lens as psr
from psr_lens.errors import InputError

MIDDLEWARE = ("--middleware", "psr_lens.serving.middleware.SteeredModels")
GREEDY = {"temperature": 0, "max_tokens": 8}
REQUESTS = 1000


class Before(NamedTuple):
    """What a server without the middleware answered before it was killed."""

    port: int
    answers: list[list[int]]
    refusals: dict[str, tuple[int, str]]


@pytest.fixture(scope="module")
def before(tiny_for_vllm):
    with vllm_server(tiny_for_vllm("llama")) as server:  # ends it with SIGKILL
        refusals = {name: refusal(server, asked) for name, (asked, _) in REFUSED.items() if in_json(asked)}
        return Before(server.port, [complete(server, *each) for each in BEFORE], refusals)


@pytest.fixture(scope="module")
def served(tiny_for_vllm, before):
    """A model and its server, with the middleware, on the port of one that was killed."""
    tiny = tiny_for_vllm("llama")
    with vllm_server(tiny, *MIDDLEWARE, port=before.port) as server:
        yield tiny, server


def in_json(asked):
    """Whether vLLM itself hands arguments on as they are: JSON has no other numbers, and it takes true for 1."""
    return not any(each is True or (isinstance(each, float) and not math.isfinite(each)) for each in asked.values())


def refusal(server, asked):
    body = {"model": "base", "prompt": prompt(0), "vllm_xargs": asked}  # the client's own JSON has no NaN
    answer = httpx.post(f"{server.url}/v1/completions", content=json.dumps(body), headers={"content-type": "application/json"})
    return answer.status_code, answer.json()["error"]["message"]


def prompt(seed, length=12):
    rng = random.Random(seed)
    return [rng.randrange(5, 300) for _ in range(length)]


BEFORE = [
    (prompt(seed), asked)
    for seed in range(4)
    for asked in (None, {"psr": "post", "psr_alpha": 1}, {"psr": "heads", "psr_alpha": 0.5}, {"psr": "rules", "psr_alpha": -0.5})
]


def complete(server, ids, asked=None, model="base", **more):
    """Greedy tokens of the server."""
    extra = {"ignore_eos": True, "return_token_ids": True} | ({} if asked is None else {"vllm_xargs": asked})
    found = server.client.completions.create(model=model, prompt=ids, extra_body=extra, **GREEDY | more)
    return found.choices[0].token_ids


ASKED = {
    "unsteered": (None, (None, 0)),
    "a name": ({"psr": "post"}, ("post", 1.0)),
    "a strength": ({"psr": "post", "psr_alpha": 0.5}, ("post", 0.5)),
    "against it": ({"psr": "rules", "psr_alpha": -1}, ("rules", -1.0)),
    "a list": ({"psr": ["mlp"], "psr_alpha": [2]}, ("mlp", 2.0)),
    "a plan": ({"psr": "plan"}, ("plan", 1.0)),
    "a start": ({"psr": "post", "psr_start_R": 3}, ("post", 1.0, 3)),
}


@pytest.mark.parametrize(("asked", "wanted"), ASKED.values(), ids=ASKED)
def test_greedy_tokens_are_those_of_attach(asked, wanted, served):
    tiny, server = served
    name, alpha, *start = wanted
    steered = 0
    for seed in range(6):
        expected = tiny.greedy(prompt(seed), name, alpha, 8, *start)
        assert complete(server, prompt(seed), asked) == expected
        steered += expected != tiny.greedy(prompt(seed), None, 0, 8)
    assert (steered > 0) == (name is not None)


def test_requests_in_flight_together_are_as_alone(served):
    tiny, server = served
    rng = random.Random(1)
    jobs = [
        (prompt(index, rng.randint(3, 40)), rng.choice([None, *tiny.steering]), rng.choice([0.5, 1, -1])) for index in range(40)
    ]
    with ThreadPoolExecutor(16) as pool:
        found = list(
            pool.map(lambda job: complete(server, job[0], None if job[1] is None else {"psr": job[1], "psr_alpha": job[2]}), jobs)
        )
    assert found == [tiny.greedy(ids, name, alpha, 8) for ids, name, alpha in jobs]


def test_chats_and_streams_are_steered(served):
    tiny, server = served
    messages = [{"role": "user", "content": "what is a bear ?"}]
    for stream in (False, True):
        for asked, wanted in (({}, (None, 0)), ({"vllm_xargs": {"psr": "post", "psr_alpha": 0.5}}, ("post", 0.5))):
            extra = {"ignore_eos": True, "return_token_ids": True} | asked
            found = server.client.chat.completions.create(
                model="base", messages=messages, extra_body=extra, stream=stream, **GREEDY
            )
            parts = list(found) if stream else [found]
            ids = [token for part in parts for choice in part.choices for token in getattr(choice, "token_ids", None) or ()]
            assert ids == tiny.greedy(parts[0].prompt_token_ids, *wanted, 8)


def test_responses_and_messages_are_steered_as_chats_are(served):
    _, server = served
    question = "what is a bear ?"
    messages, texts = [{"role": "user", "content": question}], []
    for model in ("base", "base+post@0.5", "base+rules"):
        chat = server.client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=12)
        asked = {"model": model, "input": question, "temperature": 0, "max_output_tokens": 12}
        responded = httpx.post(f"{server.url}/v1/responses", json=asked).json()
        asked = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12}
        message = httpx.post(f"{server.url}/v1/messages", json=asked).json()
        texts.append(chat.choices[0].message.content)
        assert responded["output"][0]["content"][0]["text"] == texts[-1]
        assert message["content"][0]["text"] == texts[-1]
    assert len(set(texts)) == 3


REFUSED = {
    "unknown name": ({"psr": "parrot"}, "psr: got 'parrot', expected one of the replacements that are served: 'post', 'rules', "),
    "nan": ({"psr": "post", "psr_alpha": math.nan}, "psr_alpha: got nan, expected a finite number"),
    "infinite": ({"psr": "post", "psr_alpha": -math.inf}, "psr_alpha: got -inf, expected a finite number"),
    "unknown argument": ({"psr": "post", "psr_strength": 1}, "extra_args: got the unknown name 'psr_strength', expected some of "),
    "ours": ({"psr": "post", "psr_in_force": 1}, "extra_args: got the unknown name 'psr_in_force'"),
    "no name": ({"psr_alpha": 1}, "extra_args: got 'psr_alpha' without 'psr'"),
    "text": ({"psr": "post", "psr_alpha": "1"}, "psr_alpha: got '1', expected a finite number"),
    "true": ({"psr": "post", "psr_alpha": True}, "psr_alpha: got True, expected a finite number"),
    "start": ({"psr": "post", "psr_start_R": 12}, "psr_start_R: got 12, expected a position in the prompt of 12 tokens"),
}


@pytest.mark.parametrize(("asked", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_steered_is_refused_in_our_words(asked, message, served):
    status, found = refusal(served[1], asked)
    assert status == 400
    assert found.startswith(message)


def test_a_stream_is_refused_before_it_begins(served):
    _, server = served
    with pytest.raises(openai.BadRequestError, match="psr: got 'parrot'"):
        complete(server, prompt(0), {"psr": "parrot"}, stream=True)


NAMED = {
    "base+post": ("post", 1.0),
    "base+post@0.5": ("post", 0.5),
    "base+rules@-1": ("rules", -1.0),
    "base+post@.25+post@0.25": ("post", 0.5),
    "base+plan@1e0": ("plan", 1.0),
}


@pytest.mark.parametrize("model", NAMED)
def test_the_name_of_a_model_says_what_steers(model, served):
    tiny, server = served
    assert complete(server, prompt(2), model=model) == tiny.greedy(prompt(2), *NAMED[model], 8)
    assert complete(server, prompt(2), model=model) != tiny.greedy(prompt(2), None, 0, 8)
    messages = [{"role": "user", "content": "what is a bear ?"}]
    extra = {"ignore_eos": True, "return_token_ids": True}
    found = server.client.chat.completions.create(model=model, messages=messages, extra_body=extra, **GREEDY)
    assert found.choices[0].token_ids == tiny.greedy(found.prompt_token_ids, *NAMED[model], 8)


def test_a_start_goes_with_a_name(served):
    tiny, server = served
    found = complete(server, prompt(2), {"psr_start_R": 3}, model="base+post@0.5")
    assert found == tiny.greedy(prompt(2), "post", 0.5, 8, 3)


REFUSED_NAMES = {
    "unknown": ("base+parrot", None, "psr: got 'parrot', expected one of the replacements that are served: 'post', "),
    "empty": ("base+", None, "psr: got '', expected one of the replacements"),
    "second": ("base+post+parrot@2", None, "psr: got 'parrot', expected one of the replacements"),
    "no number": ("base+post@much", None, "model: got 'base+post@much', expected a number of at most 40 characters as"),
    "nothing": ("base+post@", None, "model: got 'base+post@', expected a number"),
    "nan": ("base+post@nan", None, "model: got 'base+post@nan', expected a number"),
    "too large": ("base+post@1e999", None, "psr_alpha: got [inf], expected a finite number"),
    "another base": ("bass+post", None, "model: got 'bass+post', expected one of 'base' before the first '+'"),
    "both names": (
        "base+post",
        {"psr": "post"},
        "model: got 'base+post', expected replacements either there or in 'vllm_xargs', which",
    ),
    "both strengths": (
        "base+post@2",
        {"psr_alpha": 2},
        "expected replacements either there or in 'vllm_xargs', which has 'psr_alpha'",
    ),
}


@pytest.mark.parametrize(("model", "asked", "message"), REFUSED_NAMES.values(), ids=REFUSED_NAMES)
def test_a_name_that_says_nothing_or_too_much_is_refused(model, asked, message, served):
    _, server = served
    with pytest.raises(openai.BadRequestError) as caught:
        complete(server, prompt(0), asked, model=model)
    assert message in caught.value.body["message"]


def test_other_models_are_unknown_to_vllm_as_ever(served):
    _, server = served
    for model in ("parrot", "bass+parrot"):
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            complete(server, prompt(0), model=model)


def test_models_are_listed_with_their_replacements(served):
    tiny, server = served
    found = [each.id for each in server.client.models.list()]
    assert found == ["base", *(f"base+{name}" for name in tiny.saved)]


def test_it_samples_for_generate(served):
    """Thousands of requests in flight at a time, each with its own steering, are as the model's own."""
    tiny, server = served
    model = psr.load_model(tiny.folder, backend="bridge")
    engine = psr.engines.vllm(f"{server.url}/v1")
    pairs = [*pairs_of(model, 12)] * 25
    few = psr.SamplingConfig(temperature=0, max_new_tokens=6)
    for name in (None, "post", "rules", "plan"):
        given = None if name is None else tiny.steering[name]
        alpha = [(-1.0, 0.5, 1.0)[row % 3] for row in range(12)] * 25
        found = psr.generate(model, pairs, given, alpha=alpha, sampling=few, engine=engine)
        assert found == [*psr.generate(model, pairs[:12], given, alpha=alpha[:12], sampling=few)] * 25
    with pytest.raises(InputError, match="engine: got one that serves 'post', "):
        psr.generate(model, pairs[:1], random_replacement(model), sampling=few, engine=engine)
    sampled, alike = psr.SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=6, seed=5), pairs[:1] * 6
    first = psr.generate(model, alike, tiny.steering["post"], sampling=sampled, engine=engine)
    again = psr.generate(model, alike[:2], tiny.steering["post"], sampling=sampled, streams=[3, 1], engine=engine)
    assert again == [first[3], first[1]]
    assert len({each.ids for each in first}) > 1


def test_what_vllm_would_ignore_is_refused(served):
    _, server = served
    steered = {"vllm_xargs": {"psr": "post"}}
    chat = {"model": "base", "messages": [{"role": "user", "content": "a"}]}
    for path, body, message in (
        (
            "completions",
            {"model": "base", "prompt": "a", "psr": "post"},
            "psr: got it in the request's body, expected it in 'vllm_xargs'",
        ),
        ("completions", {"model": "base", "prompt": "a", "extra_body": steered}, "psr: got it in 'extra_body', expected it in"),
        (
            "chat/completions/batch",
            chat | {"messages": [chat["messages"]]} | steered,
            "path: got '/v1/chat/completions/batch', expected",
        ),
        ("chat/completions/batch", chat | {"messages": [chat["messages"]], "model": "base+post"}, "path: got "),
        ("completions", {"model": "base", "prompt": "a", "use_beam_search": True, "n": 2} | steered, "use_beam_search: got True"),
    ):
        answer = httpx.post(f"{server.url}/v1/{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["message"][: len(message)]) == (400, message)


def test_after_a_crash_it_answers_the_same(served, before):
    tiny, server = served
    assert [complete(server, ids, asked) for ids, asked in BEFORE] == before.answers
    for (ids, asked), found in zip(BEFORE, before.answers, strict=True):
        alphas = asked["psr_alpha"] if asked else 0
        assert found == tiny.greedy(ids, asked and asked["psr"], alphas, 8)


@pytest.mark.parametrize("name", [name for name, (asked, _) in REFUSED.items() if in_json(asked)])
def test_without_the_middleware_it_refuses_too(name, before):
    status, message = before.refusals[name]
    assert status == 400
    assert message.startswith(REFUSED[name][1])


JUNK = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    10**30,
    2**63,
    math.nan,
    math.inf,
    "",
    "post",
    "rules",
    "\ud800",
    "é" * 50,
    [],
    ["post"],
    [1, "x"],
    {},
]
KEYS = ["psr", "psr_alpha", "psr_start_R", "psr_start_QR", "psr_in_force", "PSR", "psr_"]
OTHERS = {"other": ["x"], "": 2.5}
"""Arguments for other plugins; what vLLM makes of bad ones is its own affair."""
FIELDS = [
    "model",
    "prompt",
    "temperature",
    "stop",
    "seed",
    "stream",
    "echo",
    "logprobs",
    "top_p",
    "vllm_xargs",
    "psr",
    "extra_body",
    "x",
]


def junk(rng, depth=0):
    if depth < 3 and rng.random() < 0.3:
        if rng.random() < 0.5:
            return [junk(rng, depth + 1) for _ in range(rng.randint(0, 3))]
        return {rng.choice(KEYS + FIELDS): junk(rng, depth + 1) for _ in range(rng.randint(0, 3))}
    return rng.choice(JUNK)


def malformed(rng):
    """A request's body, hardly ever a valid one."""
    body = {"model": "base", "prompt": prompt(rng.randrange(99)), "max_tokens": 2}
    kind = rng.random()
    if kind < 0.1:
        text = json.dumps(body | {"vllm_xargs": {"psr": "post"}})
        return text[: rng.randrange(len(text))].encode()
    if kind < 0.15:
        return rng.choice([b"", b"[" * 100_000, b"\xff\xfe", b"null", b"[]", b'{"a":' * 50_000, rng.randbytes(40)])
    if kind < 0.7:
        asked = {rng.choice(KEYS): junk(rng) for _ in range(rng.randint(0, 4))} | (OTHERS if rng.random() < 0.2 else {})
        return json.dumps(body | {"vllm_xargs": asked if rng.random() < 0.9 else junk(rng)}).encode()
    changed = {rng.choice(FIELDS): junk(rng) for _ in range(rng.randint(1, 3))}
    names = {"model": rng.choice(["base+post", "base+post@", "base+post@nan", "base+@", "+post", "base+post+post@1e999", "post"])}
    return json.dumps(body | (names if rng.random() < 0.4 else {}) | changed).encode()


def test_malformed_requests_are_answered_and_the_next_one_is_right(served):
    tiny, server = served
    rng = random.Random(0)
    bodies = [malformed(rng) for _ in range(REQUESTS)]

    def status(body):
        path = "/v1/completions"
        return client.post(path, content=body, headers={"content-type": "application/json"}).status_code

    with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(status, bodies))
    wrong = [(code, body[:300]) for code, body in zip(found, bodies, strict=True) if code != 200 and not 400 <= code < 500]
    assert not wrong, "\n".join(map(str, wrong))
    assert found.count(400) > REQUESTS / 2
    assert 0 < found.count(200) < REQUESTS / 2
    assert complete(server, prompt(0), {"psr": "post"}) == tiny.greedy(prompt(0), "post", 1.0, 8)
    assert complete(server, prompt(0)) == tiny.greedy(prompt(0), None, 0, 8)
