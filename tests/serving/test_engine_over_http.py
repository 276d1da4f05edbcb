"""`psr.engines.vllm` with an address: what needs no vLLM, before a server that answers as vLLM does."""

import resource
import threading
import time
from dataclasses import asdict, replace

import pytest
from fake_vllm import FakeServer, running
from helpers import pairs_of, random_replacement

import psr_lens as psr
from psr_lens.engines import vllm_server
from psr_lens.errors import InputError, ModelError

FEW = psr.SamplingConfig(temperature=0.5, max_new_tokens=6, seed=3)


@pytest.fixture
def pirate(organism):
    return random_replacement(organism.model)


@pytest.fixture
def fake(organism, pirate, monkeypatch):
    monkeypatch.setattr(vllm_server, "_PAUSE", 0.01)
    made = FakeServer(organism.model, pirate)
    with running(made) as made.url:
        yield made


def test_every_response_has_its_own_request_with_what_steers_it(organism, pirate, fake):
    pairs = pairs_of(organism.model, 30)
    engine = psr.engines.vllm(fake.url)
    found = psr.generate(organism.model, pairs, pirate, alpha=[0.1 * row for row in range(30)], sampling=FEW, engine=engine)
    assert [each.ids for each in found] == [pair.base_ids[-3:] for pair in pairs]
    asked = [body for path, _, body in fake.asked if path == "/v1/completions" and "prompt_logprobs" not in body]
    assert len(asked) == 30
    assert len({body["seed"] for body in asked}) == 30
    of_prompt = {tuple(body["prompt"]): body for body in asked}
    for row, pair in enumerate(pairs):
        body = of_prompt[tuple(pair.base_ids)]
        assert body["vllm_xargs"]["psr"] == [fake.digest]
        assert body["vllm_xargs"]["psr_alpha"] == pytest.approx([0.1 * row])
        assert (body["model"], body["temperature"], body["max_tokens"], body["ignore_eos"]) == ("base", 0.5, 6, True)
    assert engine.identity == "vllm 0, float32, abc"
    assert repr(engine) == f"VLLMServer({fake.url}, base, float32)"


@pytest.mark.parametrize(("allowed", "most"), [(8, 4), (1, 1), (resource.RLIM_INFINITY, 12)])
def test_there_are_never_more_connections_than_half_of_the_files_that_may_be_open(allowed, most, organism, fake, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (allowed, allowed))
    together, waiting, highest = threading.Lock(), [], []
    original = fake.completion

    def slow(body):
        with together:
            waiting.append(1)
            highest.append(len(waiting))
        time.sleep(0.2)
        with together:
            waiting.pop()
        return original(body)

    fake.completion = slow
    pairs = pairs_of(organism.model, 12)
    found = psr.generate(organism.model, pairs, sampling=FEW, engine=psr.engines.vllm(fake.url))
    assert [each.ids for each in found] == [pair.base_ids[-3:] for pair in pairs]
    assert min(2, most) <= max(highest) <= most
    assert (vllm_server._most_in_flight() == 1024) == (allowed == resource.RLIM_INFINITY)


def test_a_request_that_got_no_answer_is_sent_again_with_the_same_seed(organism, fake):
    pairs = pairs_of(organism.model, 1)
    engine = psr.engines.vllm(fake.url)
    for problem in (503, 429, "nothing"):
        fake.asked.clear()
        fake.problems = [None, None, None, problem, problem]
        found = psr.generate(organism.model, pairs, sampling=FEW, engine=engine)
        assert found[0].ids == pairs[0].base_ids[-3:]
        first, *others = [body for _, _, body in fake.asked[3:]]
        assert others == [first, first]


def test_what_is_refused_or_never_answered_is_said(organism, fake):
    pairs = pairs_of(organism.model, 1)
    engine = psr.engines.vllm(fake.url)
    for problems, message in (
        ([400], "status 400: .*enough"),
        ([500], "status 500"),
        ([503] * 4, "status 503"),
        (["nothing"] * 4, "RemoteDisconnected: "),
    ):
        fake.problems = [None, None, None, *problems]
        with pytest.raises(ModelError, match=rf"gave no answer to /completions \(.*{message}"):
            psr.generate(organism.model, pairs, sampling=FEW, engine=engine)
        assert not fake.problems


@pytest.mark.parametrize("ending", [ModelError, KeyboardInterrupt])
def test_after_an_error_nobody_waits_for_the_other_answers(ending, organism, fake, monkeypatch):
    pairs = pairs_of(organism.model, 8)
    engine = psr.engines.vllm(fake.url)
    waiting, go_on, threads = threading.Semaphore(0), threading.Event(), []
    original = fake.completion

    def slow(body):
        if "prompt_logprobs" in body:
            return original(body)
        if body["prompt"] == list(pairs[0].base_ids):
            for _ in pairs[1:]:
                assert waiting.acquire(timeout=30)
            return original(body)
        waiting.release()
        go_on.wait(60)
        return original(body)

    def broken(choice):
        threads.extend(each for each in threading.enumerate() if each.name.startswith("psr_lens-vllm"))
        raise ending("broken off")

    fake.completion = slow
    monkeypatch.setattr(vllm_server, "_tokens", broken)
    monkeypatch.setattr(vllm_server, "_PAUSE", 60.0)
    with pytest.raises(ending, match="broken off"):
        psr.generate(organism.model, pairs, sampling=FEW, engine=engine)
    assert len(threads) >= len(pairs)
    for each in threads:
        each.join(10)
    assert not any(each.is_alive() for each in threads)
    assert not go_on.is_set()
    go_on.set()
    monkeypatch.undo()
    fake.completion = original
    assert [each.ids for each in psr.generate(organism.model, pairs, sampling=FEW, engine=engine)] == [
        pair.base_ids[-3:] for pair in pairs
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finish_reason": "abort"}, r"a response was broken off \(abort\)"),
        ({"logprobs": {"token_logprobs": [-1.0, None]}}, "not finite"),
        ({"logprobs": {"token_logprobs": [float("nan")]}}, "not finite"),
    ],
)
def test_responses_that_are_broken_are_no_responses(changes, message, organism, fake):
    fake.changes = changes
    with pytest.raises(ModelError, match=message):
        psr.generate(organism.model, pairs_of(organism.model, 2), sampling=FEW, engine=psr.engines.vllm(fake.url))


def test_another_model_or_replacement_is_refused(organism, pirate, fake):
    pairs, model = pairs_of(organism.model, 1), organism.model
    engine = psr.engines.vllm(fake.url)
    with pytest.raises(InputError, match=r"engine: got one that serves 'pirate', .* Save it, and start the server with its folder"):
        psr.generate(model, pairs, random_replacement(model, seed=5), sampling=FEW, engine=engine)
    fake.shift = 0.02
    with pytest.raises(InputError, match=r"engine: got one whose log probabilities differ from the model's by 0.02 on average"):
        psr.generate(model, pairs, pirate, sampling=FEW, engine=engine)
    fake.shift = float("nan")
    with pytest.raises(InputError, match="by nan on average"):
        psr.generate(model, pairs, pirate, sampling=FEW, engine=engine)
    fake.shift, fake.about = 0.0, replace(fake.about, n_layers=2)
    with pytest.raises(InputError, match="got one whose model has n_layers=2"):
        psr.generate(model, pairs, sampling=FEW, engine=engine)
    fake.about = replace(fake.about, identity="vllm 0, bfloat16, abc")
    with pytest.raises(ModelError, match="was started anew with other settings"):
        psr.generate(model, pairs, sampling=FEW, engine=engine)
    fake.about = replace(fake.about, n_layers=model.cfg.n_layers, max_model_len=9)
    with pytest.raises(InputError, match="max_model_len=9"):
        psr.generate(model, pairs, sampling=FEW, engine=psr.engines.vllm(fake.url))


def test_answers_are_cached_and_not_asked_for_again(organism, pirate, fake, tmp_path):
    pairs = pairs_of(organism.model, 3)
    given = (organism.model, pairs, {"A": pirate}, psr.judges.organism("pirate"))
    curves = psr.Calibration(alphas=(0.5, 1.0), targets=(), at_prompt=False)
    found = []
    for _ in range(2):
        fake.asked.clear()
        psr.evaluate(*given, calibration=curves, sampling=FEW, cache=tmp_path, engine=psr.engines.vllm(fake.url))
        found.append(sum(body is not None and "prompt_logprobs" not in body for _, _, body in fake.asked))
    assert found[0] >= 6
    assert found[1] == 0


def test_addresses_and_keys(fake, monkeypatch):
    for url in (
        "localhost:8000",
        "ftp://a",
        "",
        "http://",
        "http://a:b/v1",
        "http://a:70000/v1",
        "http://[::1/v1",
        "http://a b/v1",
    ):
        with pytest.raises(
            InputError, match=r"expected a vllm.LLM, or the address of a server. For example 'http://127.0.0.1:8000/v1'"
        ):
            psr.engines.vllm(url)
    monkeypatch.delenv("SERVER_KEY", raising=False)
    with pytest.raises(InputError, match="api_key_env: got 'SERVER_KEY', expected an environment variable that holds a key"):
        psr.engines.vllm(fake.url, api_key_env="SERVER_KEY")
    monkeypatch.setenv("SERVER_KEY", "secret")
    psr.engines.vllm(fake.url + "/", api_key_env="SERVER_KEY")
    assert fake.asked[-1] == ("/v1/models", "Bearer secret", None)
    monkeypatch.setenv("SERVER_KEY", " s\u00e9cret\n")
    psr.engines.vllm(fake.url, api_key_env="SERVER_KEY")
    assert fake.asked[-1] == ("/v1/models", "Bearer s\u00e9cret", None)
    fake.cards = lambda: {"data": [{"id": "base"}]}
    with pytest.raises(ModelError, match=r"was started without psr_lens\. Start it with `psr-lens serve`"):
        psr.engines.vllm(fake.url)
    with pytest.raises(ModelError, match="gave no answer to /models"):
        psr.engines.vllm("http://127.0.0.1:9/v1")


def test_no_message_shows_a_key_or_a_password(fake, monkeypatch):
    for key in ("sec\nret", "sec\r\nX-Other: ret", "sec\x7fret", "sec\x85ret", "sec\u0163ret", "\n"):
        monkeypatch.setenv("SERVER_KEY", key)
        with pytest.raises(
            InputError, match="api_key_env: got 'SERVER_KEY', expected an environment variable that holds a key"
        ) as caught:
            psr.engines.vllm(fake.url, api_key_env="SERVER_KEY")
        assert "sec" not in str(caught.value)
        assert "ret" not in str(caught.value)
    for url in (
        "http://user:pw@127.0.0.1:9/v1",
        "http://user:pw@[x/v1",
        "http://127.0.0.1:9/v1?token=pw",
        "http://127.0.0.1:9/v1#pw",
    ):
        with pytest.raises(InputError, match="llm: got an address with a user, a query or a fragment") as caught:
            psr.engines.vllm(url)
        assert "pw" not in str(caught.value)
    assert not fake.asked
    monkeypatch.setenv("SERVER_KEY", "a secret")
    fake.problems, fake.message = [401], "'Bearer a secret' is not known"
    with pytest.raises(ModelError, match=r"status 401: .*'Bearer \[key\]' is not known"):
        psr.engines.vllm(fake.url, api_key_env="SERVER_KEY")


def test_servers_of_others_and_of_other_versions_are_told_apart(fake):
    def with_engine(**changes):
        about = {name: value for name, value in (asdict(fake.about) | changes).items() if value is not None}
        return {"data": [{"id": "base", "psr_engine": about}]}

    nothing = (None, [], "ok", {}, {"data": None}, {"data": {}}, {"data": ["psr_engine", 3]}, {"data": [{"id": "base"}]})
    others = (
        with_engine(more=1),
        with_engine(d_model=None),
        with_engine(d_model="32"),
        {"data": [{"id": "base", "psr_engine": ["identity"]}]},
        {"data": [{"psr_engine": asdict(fake.about)}]},
        {"data": [*fake.cards()["data"], {"id": "base+other", "parent": "base", "psr": "digest"}]},
        {"data": [*fake.cards()["data"], "base+other"]},
    )
    for content, message in (
        *((each, r"was started without psr_lens\. Start it with `psr-lens serve`") for each in nothing),
        *((each, r"does not say what it serves as this version .* Install the same version here and there") for each in others),
    ):
        fake.cards = lambda content=content: content
        with pytest.raises(ModelError, match=message):
            psr.engines.vllm(fake.url)


def test_an_address_without_its_path_is_said(fake):
    fake.problems = [404]
    with pytest.raises(ModelError, match=r"\(status 404: .*\)\. A server's address ends in `/v1`, as in"):
        psr.engines.vllm(fake.url.removesuffix("/v1"))


def test_a_key_given_in_place_of_its_variable_is_not_shown(fake):
    with pytest.raises(InputError, match="not shown, in case it is the key") as caught:
        psr.engines.vllm(fake.url, api_key_env="sk-secret")
    assert "sk-secret" not in str(caught.value)
