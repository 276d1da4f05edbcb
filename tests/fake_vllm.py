"""A server that answers as vLLM's does with psr_lens's middleware, for tests of engines without vLLM."""

import json
import sys
import threading
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

import psr_lens as psr
from psr_lens.models import forward
from psr_lens.replacement.content_digest import content_digest
from psr_lens.serving.about_engine import AboutEngine


class FakeServer:
    """Answers every prompt with the ids of the prompt's last tokens, and knows the model's log probabilities."""

    def __init__(self, model, replacement):
        cfg = model.cfg
        self.about = AboutEngine("vllm 0, float32, abc", "float32", cfg.n_layers, cfg.d_model, cfg.d_vocab, cfg.n_ctx)
        self.model, self.digest = model, None if replacement is None else content_digest(replacement)
        self.asked, self.problems, self.changes, self.shift, self.message = [], [], {}, 0.0, "enough"
        self.lock = threading.Lock()

    def cards(self):
        base = {"id": "base", "parent": None, "psr_engine": asdict(self.about)}
        return {"data": [base, {"id": "base+pirate", "parent": "base", "psr": [[self.digest, 1.0]]}]}

    def completion(self, body):
        choice = {"finish_reason": "length", "token_ids": body["prompt"][-3:], "logprobs": {"token_logprobs": [-1.0]}}
        if "prompt_logprobs" in body:
            ids = torch.tensor([body["prompt"]])
            with self.lock, torch.inference_mode():
                logits = forward(self.model, ids, torch.ones_like(ids))[0].log_softmax(-1)
            at = [{str(token): {"logprob": float(logits[row, token]) + self.shift}} for row, token in enumerate(body["prompt"][1:])]
            return {"choices": [choice | {"prompt_logprobs": [None, *at]}]}
        return {"choices": [choice | self.changes]}

    def answer(self, handler, body):
        with self.lock:
            problem = self.problems.pop(0) if self.problems else None
            self.asked.append((handler.path, handler.headers["authorization"], body))
        if problem == "nothing":
            handler.close_connection = True
            return
        content = self.cards() if body is None else self.completion(body)
        text = json.dumps(content if problem is None else {"error": {"message": self.message}}).encode()
        handler.send_response(problem or 200)
        handler.send_header("content-length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)


@contextmanager
def running(fake):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            fake.answer(self, None)

        def do_POST(self):
            fake.answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def log_message(self, *given):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            if not isinstance(sys.exception(), ConnectionError):  # the client may go away
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


class SteeringServer(FakeServer):
    """Answers greedily as plain transformers does with what the request names attached; serves the folders in `serving`."""

    def __init__(self, model, hf):
        super().__init__(model, None)
        self.hf, self.serving = hf, {}

    def cards(self):
        base = {"id": "base", "parent": None, "psr_engine": asdict(self.about)}
        served = [
            {"id": f"base+{name}", "parent": "base", "psr": [[content_digest(psr.Replacement.load(folder)), 1.0]]}
            for name, folder in self.serving.items()
        ]
        return {"data": [base, *served]}

    def completion(self, body):
        if "prompt_logprobs" in body:
            return super().completion(body)
        assert body["temperature"] == 0
        asked = body.get("vllm_xargs", {"psr": [], "psr_alpha": []})
        known = {content_digest(each): each for each in map(psr.Replacement.load, self.serving.values())}
        plan = sum(float(alpha) * known[digest] for digest, alpha in zip(asked["psr"], asked["psr_alpha"], strict=True))
        ids = torch.tensor([body["prompt"]])
        settings = {
            "max_new_tokens": body["max_tokens"],
            "do_sample": False,
            "eos_token_id": body["stop_token_ids"],
            "pad_token_id": 0,
        }
        with self.lock:
            if plan:
                with plan.attach(self.hf, 1.0):
                    found = self.hf.generate(ids, attention_mask=torch.ones_like(ids), **settings)
            else:
                found = self.hf.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        new = found[0, ids.shape[1] :].tolist()
        reason = "stop" if new[-1] in body["stop_token_ids"] else "length"
        return {"choices": [{"finish_reason": reason, "token_ids": new, "logprobs": {"token_logprobs": [-1.0] * len(new)}}]}
