"""A real HTTP server in a thread that plays an OpenAI-compatible one, well or badly."""

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psr_lens as psr
from psr_lens.judges.llm_judge import Backoff, LLMJudge

KEY = "sk-test-0123456789-very-secret"


@dataclass
class Answer:
    """What the server does with one request."""

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: int | None = None
    """Close the connection after that many bytes of the body."""


def completion(text: str | None, *, finish: str = "stop", logprobs: Any = None, tokens: tuple[int, int] = (10, 2)) -> Answer:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": logprobs}
    return Answer({"choices": [choice], "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}})


def tops(*positions: tuple[str, Mapping[str, float]]) -> dict[str, Any]:
    """Logprobs as a server gives them, from the token taken and the probabilities at each position."""
    return {
        "content": [
            {
                "token": token,
                "logprob": math.log(likely.get(token, 0.5)),
                "top_logprobs": [{"token": each, "logprob": math.log(probability)} for each, probability in likely.items()],
            }
            for token, likely in positions
        ]
    }


def error(status: int, message: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> Answer:
    return Answer({"error": {"message": message, **fields}}, status, headers or {})


class ChatServer:
    """The server; `requests` are the bodies that came, `keys` what they were authorised with, `busiest` the most at one time."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]) -> None:
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.times: list[float] = []
        self.busiest = self._busy = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][0]["content"] for request in self.requests]

    @contextmanager
    def running(self) -> Iterator["ChatServer"]:
        thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    number = len(server.requests)
                    server.requests.append(request)
                    server.keys.append(self.headers.get("Authorization"))
                    server.times.append(time.monotonic())
                    server._busy += 1
                    server.busiest = max(server.busiest, server._busy)
                try:
                    answer = server.answer(request, number)
                    time.sleep(answer.delay)
                finally:
                    with server._lock:
                        server._busy -= 1
                self.give(answer)

            def give(self, answer: Answer) -> None:
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                try:
                    self.send_response(answer.status)
                    for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content if answer.cut is None else content[: answer.cut])
                    self.wfile.flush()
                except OSError:  # the client went away
                    self.close_connection = True
                if answer.cut is not None:
                    self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


# --- the judge under test ---------------------------------------------------------------------------------------------------

TRAIT = "How piratic? Q: {question} A: {answer}"
COHERENCE = "How coherent? Q: {question} A: {answer}"
QUICK = Backoff(first=0.01, longest=0.02)


def judge_at(server: ChatServer, **options: Any) -> LLMJudge:
    """A judge of the trait alone that asks the server and does not wait for long."""
    given = {"coherence_prompt": None, "timeout": 5.0, "max_retries": 3, "backoff": QUICK, "base_url": server.url}
    return psr.judges.llm(TRAIT, **(given | options))


def trait_of(judge: LLMJudge, *texts: str) -> list[float]:
    return judge(texts, ["why ?"] * len(texts)).trait.tolist()


# --- what the server may answer ---------------------------------------------------------------------------------------------


def prompt_of(request: Mapping[str, Any]) -> str:
    return request["messages"][0]["content"]


def always(answer: Answer) -> Callable[..., Answer]:
    return lambda request, number: answer


def echo(request: Mapping[str, Any], number: int) -> Answer:
    """A score that is written in the answer to be judged."""
    return completion(re.search(r"A: (.*)", prompt_of(request), re.DOTALL)[1])
