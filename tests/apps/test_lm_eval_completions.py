"""The model type `psr-completions` of lm-evaluation-harness: what it asks a server for, which plain transformers answers here."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import oracles
import pytest
from steered_lm import ALPHA, QUESTIONS, asked, steered_by

from psr_lens.errors import InputError

pytest.importorskip("lm_eval", reason="lm_eval is not installed; `make test-lm-eval` runs this in an environment of its own")
pytest.importorskip("tenacity", reason="what lm_eval's extra `api` brings is not installed; `make test-lm-eval` runs this")

from psr_lens.apps.lm_eval_completions import completions_type


@pytest.fixture(scope="module")
def steered(load, folders, tmp_path_factory):
    return steered_by(load("organism", "bridge"), folders["organism"], tmp_path_factory.mktemp("psr"))


@contextmanager
def server_of(steered):
    """Completions with `echo` as vLLM answers them: the log probability of every token of the prompt, and of one further token."""
    lock, bodies = threading.Lock(), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            (ids,) = body["prompt"]
            with lock:
                bodies.append(body)
                scores = oracles.steered_logits(steered.hf, ids, steered.steering.sites, ALPHA, body["vllm_xargs"]["psr_start_R"])
            scores = scores.log_softmax(-1)
            following = [*ids[1:], int(scores[-1].argmax())]
            of_tokens = [None, *(float(row[token]) for row, token in zip(scores, following, strict=True))]
            best = [None, *({"best": float(row.max())} for row in scores)]
            choice = {"index": 0, "text": "", "logprobs": {"token_logprobs": of_tokens, "top_logprobs": best}}
            content = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/completions", bodies
    finally:
        server.shutdown()
        server.server_close()


def model_at(url, steered, **settings):
    given = {"model": "base+pirate@0.8", "tokenizer": steered.folder, "tokenizer_backend": "huggingface", "max_retries": 1}
    return completions_type()(base_url=url, **given, **settings)


@pytest.mark.parametrize("concurrent", [1, 4])
def test_likelihoods_are_those_of_each_text_alone_steered_from_the_contexts_last_token(steered, concurrent):
    pairs = [(question, answer) for question in QUESTIONS for answer in (" arr", " the bear is an animal .")]
    pairs += [("what is", " a bear ? arr"), ("what is a bear", " ? arr")]  # the same text, divided elsewhere
    with server_of(steered) as (url, bodies):
        model = model_at(url, steered, num_concurrent=concurrent)
        found = model.loglikelihood(asked("loglikelihood", *pairs))
        whole = model.loglikelihood_rolling(asked("loglikelihood_rolling", *[(question,) for question in QUESTIONS]))
    wanted = []
    for context, continuation in pairs:
        ids, before = model.tok_encode(context + continuation), model.tok_encode(context)
        wanted.append(steered.likelihood(before, ids[len(before) :]))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=2e-3)
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in wanted]
    all_tokens = [steered.likelihood([model.prefix_token_id], model.tok_encode(question)) for question in QUESTIONS]
    assert whole == pytest.approx([value for value, _ in all_tokens], abs=2e-3)
    assert {body["model"] for body in bodies} == {"base+pirate@0.8"}
    assert len(bodies) == len(pairs) + len(QUESTIONS)


def test_what_is_refused(steered):
    with pytest.raises(InputError, match="batch_size: got 8, expected 1"):
        model_at("http://127.0.0.1:1", steered, batch_size=8)
    with pytest.raises(InputError, match="tokenized_requests: got False, expected True"):
        model_at("http://127.0.0.1:1", steered, tokenized_requests=False)
    payload = model_at("http://127.0.0.1:1", steered)._create_payload([[1, 2]], generate=True, gen_kwargs={}, eos="</s>")
    assert "vllm_xargs" not in payload
