"""A vLLM server as what samples responses: one request for each, many of them in flight together."""

from __future__ import annotations

import json
import math
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import WeakSet

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.header_text import is_header_text
from psr_lens._utils.progress import progress_bar
from psr_lens._utils.safe_files import brief
from psr_lens._utils.server_settings import check_address, check_variable
from psr_lens.engines.vllm_requests import (
    check_length,
    check_same_model,
    check_sampling,
    check_served,
    check_sizes,
    sampling_arguments,
    steering_arguments,
)
from psr_lens.errors import InputError, ModelError
from psr_lens.generation.engine import Job
from psr_lens.generation.sampling_config import SamplingConfig
from psr_lens.models import HookedModel
from psr_lens.replacement import Steering
from psr_lens.replacement.content_digest import content_digest
from psr_lens.serving.about_engine import ENGINE, AboutEngine
from psr_lens.serving.middleware import XARGS
from psr_lens.serving.requests import NAMES

_IN_FLIGHT: Final = 1024
"""Most requests that wait for an answer at a time, about as many as vLLM computes together."""
_LONGEST_ANSWER: Final = 3600.0
"""Seconds; requests wait in vLLM's queue."""
_LONGEST_CONNECT: Final = 60.0
"""Seconds that a connection may take; nothing breaks off this wait."""
_ATTEMPTS: Final = 4
_PAUSE: Final = 1.0
"""Seconds before the second attempt; twice as many before each further one."""
_BUSY: Final = (429, 502, 503, 504)
"""Statuses after which a request is sent again. It has its own seed, so nothing changes by that."""
_MODELS: Final = "/models"
"""The path, behind that of the address, of the list of models."""
_THREADS: Final = "psr_lens-vllm"
"""The beginning of the names of the threads that wait for answers."""
_REMEDY: Final = "Save it, and start the server with its folder: `psr-lens serve MODEL FOLDER`."


class VLLMServer:
    """A vLLM server that samples for psr_lens; made by `psr.engines.vllm`."""

    def __init__(self, url: str, api_key_env: str | None = None) -> None:
        """Ask a server what it serves.

        Args:
            url: Its address, with `/v1`.
            api_key_env: Environment variable with the key of its API.

        Raises:
            InputError: `url` is no address, or there is no such variable, or its value cannot be sent.
            ModelError: the server does not answer, or was started without psr_lens's middleware, or with another version of it.
        """
        check_address("llm", url, "a vllm.LLM, or the address of a server", "For example 'http://127.0.0.1:8000/v1'.")
        self._url = url.rstrip("/")
        self._key = None if api_key_env is None else key_in(api_key_env)
        self._own = threading.local()
        self._name, self._about, self._served = self._asked()

    def __repr__(self) -> str:
        """The server's address, its model and type in a line."""
        return f"VLLMServer({self._url}, {self._name}, {self._about.dtype})"

    @property
    def identity(self) -> str:
        """The version of vLLM, the type of the weights, and a digest of what else in the configuration changes logits."""
        return self._about.identity

    def check(self, model: HookedModel, steering: Steering | None, config: SamplingConfig) -> None:
        """Refuse another model than the server's own, a replacement that it does not serve, or settings that mean something else in vLLM.

        The models are compared by what they do: the log probabilities of the tokens of random prompts.

        Raises:
            InputError: the models differ, the server was started without the replacement, or it cannot sample like this.
            ModelError: the server does not answer, or was started anew with other settings.
        """
        check_sampling(config)
        self._name, about, self._served = self._asked()
        if about.identity != self._about.identity:
            raise ModelError(f"vllm: the server at {self._url} was started anew with other settings. Make the engine again.")
        check_sizes(model, about)
        check_served(steering, self._digests, self._served, _REMEDY)
        check_same_model(model, about, self._log_probabilities)

    def serves(self, steering: Steering) -> bool:
        """Whether the server serves a replacement, or all parts of a plan, now.

        Raises:
            ModelError: the server does not answer.
        """
        *_, self._served = self._asked()
        return all(content_digest(replacement) in self._digests for replacement, _ in steering._weighted())

    @property
    def _digests(self) -> set[str]:
        """Digests of all replacements that the server is known to serve."""
        return {digest for parts in self._served.values() for digest in parts}

    def respond(self, jobs: Sequence[Job], config: SamplingConfig, stops: frozenset[int]) -> list[tuple[int, ...]]:
        """Sample all responses; see `Engine`.

        Raises:
            InputError: a prompt and its response are longer than the server takes.
            ModelError: a response was broken off, logits are not finite, or the server does not answer.
        """
        check_length(jobs, self._about.max_model_len)

        def respond(job: Job) -> tuple[int, ...]:
            steering = steering_arguments(job)
            xargs = {} if steering is None else {XARGS: steering}
            return _tokens(self._complete(job.ids, **sampling_arguments(job, config, stops), **xargs))

        return self._together(respond, jobs)

    def _together(self, one: Callable[[Job], tuple[int, ...]], jobs: Sequence[Job]) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        connections = _Connections()
        pool = ThreadPoolExecutor(max(1, min(len(jobs), _most_in_flight())), _THREADS, self._begin, (connections,))
        try:
            with progress_bar(total=len(jobs), desc="sample", unit="response") as bar:
                for each in pool.map(one, jobs):
                    found.append(each)
                    bar.update(1)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            connections.end()  # after an error, the interpreter would wait for the others' answers when it exits
        return found

    def _begin(self, connections: _Connections) -> None:
        self._own.connections = connections

    def _connections(self) -> _Connections:
        """Those of the call that the thread works for; of its own in a thread that no call has started."""
        if not hasattr(self._own, "connections"):
            self._own.connections = _Connections()
        found: _Connections = self._own.connections
        return found

    def _asked(self) -> tuple[str, AboutEngine, dict[str, list[str]]]:
        """The name of the model, its engine, and the digests of each name."""
        content = self._ask("GET", _MODELS)
        listed = content.get("data") if isinstance(content, dict) else None
        cards = listed if isinstance(listed, list) else []
        base = next((card for card in cards if isinstance(card, dict) and ENGINE in card), None)
        if base is None:
            raise ModelError(f"vllm: the server at {self._url} was started without psr_lens. Start it with `psr-lens serve`.")
        try:
            return base["id"], _about(base[ENGINE]), _served(cards, base["id"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"vllm: the server at {self._url} does not say what it serves as this version of psr_lens does "
                f"({type(error).__name__}: {error}). Install the same version here and there."
            ) from error

    def _log_probabilities(self, ids: Int[Tensor, "prompt token"]) -> Float[Tensor, "prompt next_token"]:
        rows = []
        for row in ids.tolist():
            found = self._complete(row, temperature=0.0, max_tokens=1, prompt_logprobs=0)["prompt_logprobs"]
            rows.append([at[str(token)]["logprob"] for at, token in zip(found[1:], row[1:], strict=True)])
        return torch.tensor(rows)

    def _complete(self, ids: Sequence[int], **settings: Any) -> Mapping[str, Any]:
        body = {"model": self._name, "prompt": list(ids), "return_token_ids": True, **settings}
        choice: Mapping[str, Any] = self._ask("POST", "/completions", body)["choices"][0]
        return choice

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON content of an answer.

        Raises:
            ModelError: there is none, or the server refused the request.
        """
        problem, remedy = "", "Its log says more."
        for attempt in range(_ATTEMPTS):
            if attempt and self._connections().ended.wait(_PAUSE * 2 ** (attempt - 1)):
                break
            try:
                status, text = self._sent(method, path, body)
                content = json.loads(text) if status == 200 else None
            except (OSError, HTTPException, ValueError) as error:
                self._close()
                problem = f"{type(error).__name__}: {error}"
                continue
            if status == 200:
                return content
            problem = f"status {status}: {self._without_key(text)[:300]}"
            if status == 404 and path == _MODELS:
                remedy = "A server's address ends in `/v1`, as in 'http://127.0.0.1:8000/v1'."
            if status not in _BUSY:
                break
        raise ModelError(f"vllm: the server at {self._url} gave no answer to {path} ({problem}). {remedy}")

    def _sent(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, str]:
        """Status and text, over a connection that each thread keeps."""
        connection = getattr(self._own, "connection", None)
        if connection is None:
            parts = urlsplit(self._url)
            kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
            connection = self._own.connection = kind(str(parts.hostname), parts.port, timeout=_LONGEST_CONNECT)
        if connection.sock is None:
            self._connect(connection)
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        connection.request(method, urlsplit(self._url).path + path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def _connect(self, connection: HTTPConnection) -> None:
        connection.connect()
        connection.sock.settimeout(_LONGEST_ANSWER)
        self._connections().add(connection.sock)

    def _without_key(self, text: str) -> str:
        """The text with the key masked, should a server have repeated it."""
        return text if self._key is None else text.replace(self._key, "[key]")

    def _close(self) -> None:
        connection = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
            self._own.connection = None


class _Connections:
    """The connections of the threads of one call, which another thread can end."""

    def __init__(self) -> None:
        """Begin without one."""
        self.ended = threading.Event()
        """Set once they are ended, after which no thread of the call goes on."""
        self._lock = threading.Lock()
        self._open: WeakSet[socket.socket] = WeakSet()

    def add(self, made: socket.socket) -> None:
        """Note a connection.

        Raises:
            ConnectionAbortedError: they have been ended.
        """
        with self._lock:
            if self.ended.is_set():
                raise ConnectionAbortedError("the call has ended")
            self._open.add(made)

    def end(self) -> None:
        """Shut all down, which wakes threads that wait for an answer."""
        with self._lock:
            self.ended.set()
            for each in self._open:
                with suppress(OSError):  # closed already
                    each.shutdown(socket.SHUT_RDWR)


def key_in(variable: str, argument: str = "api_key_env") -> str:
    """The key in an environment variable, which messages never show.

    Args:
        variable: The variable's name.
        argument: The argument that names it.

    Raises:
        InputError: there is no such variable, or its value cannot be sent.
    """
    check_variable(variable, argument)
    found = os.environ.get(variable, "").strip()
    if not found:
        raise InputError(argument, repr(variable), "an environment variable that holds a key", "It is not set.")
    if not is_header_text(found):
        expected = "an environment variable that holds a key of Latin-1 characters without control characters"
        raise InputError(argument, repr(variable), expected, "Set it again.")
    return found


def _about(given: Any) -> AboutEngine:
    """An engine as its server's list of models has it.

    Raises:
        KeyError: it lacks a field.
        TypeError: it is no mapping, has others, or a field has another type.
    """
    kinds = {each.name: each.type for each in fields(AboutEngine)}
    if wrong := sorted(name for name in given if type(given[name]).__name__ != kinds.get(name)):
        raise TypeError(f"{ENGINE} has {wrong[0]}={brief(given[wrong[0]])}")
    return AboutEngine(**{name: given[name] for name in kinds})


def _served(cards: Sequence[Any], base: str) -> dict[str, list[str]]:
    """The digests of each name."""
    return {
        card["id"].removeprefix(f"{base}+"): [digest for digest, _ in card[NAMES]]
        for card in cards
        if card.get("parent") == base and NAMES in card
    }


def _most_in_flight() -> int:
    """Number of requests at a time, each of which takes a connection: at most half of the files that the process may open."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows has neither the module nor the limit
        return _IN_FLIGHT
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _IN_FLIGHT if allowed == resource.RLIM_INFINITY else min(_IN_FLIGHT, max(1, allowed // 2))


def _tokens(choice: Mapping[str, Any]) -> tuple[int, ...]:
    if choice["finish_reason"] not in ("stop", "length"):
        raise ModelError(f"vllm: a response was broken off ({choice['finish_reason']}). The server's log says why.")
    if not all(each is not None and math.isfinite(each) for each in choice["logprobs"]["token_logprobs"]):
        raise ModelError("vllm: the model gave logits that are not finite. A smaller `alpha` or dtype='float32' may help.")
    return tuple(choice["token_ids"])
