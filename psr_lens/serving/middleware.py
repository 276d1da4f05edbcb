"""Middleware of vLLM's HTTP server: replacements in the names of models, and errors where a request would be answered unsteered.

`vllm serve … --middleware psr_lens.serving.middleware.SteeredModels`. vLLM itself ignores what it does not know in a request's body.
It notices a bad strength in a streamed request only after the answer has begun, with status 200.

Bodies are read when vLLM asks for them, which it does not before it has checked the key of its API.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from psr_lens._utils.optional import package
from psr_lens._utils.safe_files import brief
from psr_lens.errors import InputError, ModelError, PsrLensError
from psr_lens.serving.about_engine import ENGINE, about_engine
from psr_lens.serving.requests import ALPHA, NAMES, asks_to_be_steered, in_force
from psr_lens.serving.served import Served

XARGS: Final = "vllm_xargs"
"""The key of a request's body under which vLLM takes arguments for plugins."""
STEERED: Final = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
"""Paths whose requests hand on these arguments; others drop them."""
_CHAT: Final = "/v1/chat/completions"
_LIST: Final = "/v1/models"
_NOTES: Final = "metadata"
"""The key of a request's body for the client's own notes, which may say anything."""
_NUMBER: Final = re.compile(r"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE]-?[0-9]+)?")
_LONGEST_NUMBER: Final = 40
"""Characters of a strength, more than any number in double precision needs."""
_EXAMPLE: Final = "For example 'base+pirate@0.8'."

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Engine(NamedTuple):
    """What a server serves."""

    bases: Sequence[str]
    """Names of its model."""
    served: Served | None
    """Its replacements."""
    has_plugin: bool
    """Whether the plugin is in force."""

    @classmethod
    def of(cls, scope: Mapping[str, Any]) -> Engine:
        """That of the application that a request was made to."""
        state = scope["app"].state
        models = getattr(state, "openai_serving_models", None)
        processor = getattr(getattr(state, "engine_client", None), "input_processor", None)
        names = [path.name for path in getattr(models, "base_model_paths", ())]
        return cls(names, getattr(processor, "_psr_served", None), hasattr(processor, "_psr_served"))


class SteeredModels:
    """ASGI middleware: takes `base+pirate@0.8` as the name of a model, lists such names, and refuses what would not be steered."""

    def __init__(self, app: Any) -> None:
        """Keep the application that it wraps."""
        self._app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Hand a request on, with its body or its answer changed."""
        if scope["type"] == "http" and scope["method"] == "POST":
            receive = _rewriting(scope, receive)
        elif scope["type"] == "http" and scope["method"] == "GET" and scope["path"].endswith(_LIST):
            send = _listing(scope, send)
        await self._app(scope, receive, send)


def steered_body(body: Any, path: str, engine: Engine) -> Any:
    """The body of a request with the replacements in its model's name where vLLM hands them on.

    Args:
        body: JSON content.
        path: The path of the request.
        engine: What the server serves.

    Returns:
        The same object if nothing is to be changed.

    Raises:
        InputError: the request asks to be steered in a way that is invalid, or that the server would ignore.
        ModelError: it asks to be steered, but the plugin is not in force.
    """
    if not isinstance(body, dict):
        return body
    _check_places(body)
    asked = body.get(XARGS)
    base, named = _split(body.get("model"), engine)
    if not named and not asks_to_be_steered(asked):
        return body
    if not path.endswith(STEERED):
        raise InputError("path", brief(path), f"one of {', '.join(STEERED)} in a request that is steered")
    if not engine.has_plugin:
        raise ModelError("vllm: the plugin of psr_lens is not in force here. Start the server with it: see VLLM_PLUGINS.")
    if named:
        asked = _joined(body["model"], named, asked)
        body = body | {"model": base, XARGS: asked}
    in_force(engine.served, asked, None, scores_prompt=_scores_prompt(body, path))
    return body


def _scores_prompt(body: Mapping[str, Any], path: str) -> bool:
    """Whether vLLM computes the probabilities of the prompt's own tokens: for `echo`, of as many tokens as at each place of the answer."""
    if body.get("prompt_logprobs") is not None:
        return True
    if body.get("echo") is not True:
        return False
    if path.endswith(_CHAT):
        return body.get("top_logprobs", 0) is not None  # 0 by default, which is enough for the prompt's own
    return body.get("logprobs") is not None


def _check_places(body: Mapping[str, Any]) -> None:
    remedy = f"With the openai client, `extra_body={{'{XARGS}': {{'{NAMES}': 'pirate'}}}}`."
    places = [("the request's body", body), *((brief(key), found) for key, found in body.items() if key not in (XARGS, _NOTES))]
    for place, found in places:
        if asks_to_be_steered(found) or (found is not body and isinstance(found, Mapping) and asks_to_be_steered(found.get(XARGS))):
            raise InputError(NAMES, f"it in {place}", f"it in {XARGS!r}", remedy)


def _split(model: Any, engine: Engine) -> tuple[Any, list[tuple[str, float]]]:
    """The name of a model without the replacements behind it, and those with their strengths."""
    if not isinstance(model, str) or model in engine.bases:
        return model, []
    for base in sorted(engine.bases, key=len, reverse=True):
        if model.startswith(f"{base}+"):
            return base, [_name_and_strength(part, model) for part in model.removeprefix(f"{base}+").split("+")]
    names = {part.partition("@")[0] for part in model.split("+")[1:]}
    if engine.served is not None and names & engine.served.named.keys():
        raise InputError("model", brief(model), f"one of {', '.join(map(repr, engine.bases))} before the first '+'", _EXAMPLE)
    return model, []


def _name_and_strength(part: str, model: str) -> tuple[str, float]:
    name, at, strength = part.partition("@")
    if at and (len(strength) > _LONGEST_NUMBER or not _NUMBER.fullmatch(strength)):
        expected = f"a number of at most {_LONGEST_NUMBER} characters as the strength behind '@'"
        raise InputError("model", brief(model), expected, _EXAMPLE)
    return name, float(strength) if at else 1.0


def _joined(model: str, named: Sequence[tuple[str, float]], asked: Any) -> dict[str, Any]:
    if asked is None:
        asked = {}
    if not isinstance(asked, dict):
        raise InputError(XARGS, brief(asked), "a mapping")
    if twice := [key for key in (NAMES, ALPHA) if key in asked]:
        expected = f"replacements either there or in {XARGS!r}, which has {twice[0]!r}"
        raise InputError("model", brief(model), expected)
    return asked | {NAMES: [name for name, _ in named], ALPHA: [alpha for _, alpha in named]}


def _rewriting(scope: Mapping[str, Any], receive: Receive) -> Receive:
    """Gives the whole body of a request in its first message, as `steered_body` has it."""
    done = False

    async def rewritten() -> Message:
        nonlocal done
        if done:
            return await receive()
        parts = []
        while not done:
            message = await receive()
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            done = not message.get("more_body", False)
        return {"type": "http.request", "body": _steered_bytes(b"".join(parts), scope), "more_body": False}

    return rewritten


def _steered_bytes(raw: bytes, scope: Mapping[str, Any]) -> bytes:
    refuse = package("fastapi", "vllm").HTTPException
    try:
        body = json.loads(raw)
    except ValueError:  # no JSON, which is for vLLM to say
        return raw
    except RecursionError as error:
        raise refuse(400, "body: got JSON that is nested too deeply.") from error
    try:
        steered = steered_body(body, scope["path"], Engine.of(scope))
    except PsrLensError as error:
        raise refuse(400, str(error)) from error
    return raw if steered is body else json.dumps(steered).encode()


def _listing(scope: Mapping[str, Any], send: Send) -> Send:
    """Adds a model for each name that the server serves to the list of models."""
    start: Message = {}
    parts: list[bytes] = []

    async def listed(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        parts.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        body = b"".join(parts)
        engine = Engine.of(scope)
        encoded = any(name.lower() == b"content-encoding" for name, _ in start["headers"])  # compressed, by a middleware within
        if start["status"] == 200 and engine.has_plugin and not encoded:
            about = asdict(about_engine(scope["app"].state.vllm_config))
            body = json.dumps(_with_steered_models(json.loads(body), engine.served, about)).encode()
            others = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
            start["headers"] = [*others, (b"content-length", str(len(body)).encode())]
        await send(start)
        await send({"type": "http.response.body", "body": body})

    return listed


def _with_steered_models(models: dict[str, Any], served: Served | None, about: dict[str, Any]) -> dict[str, Any]:
    """The list of models with what their engine is, and with one for each base and name; `psr` says by digests what it does."""
    bases, named = models["data"], {} if served is None else served.digests
    steered = [card | {"id": f"{card['id']}+{name}", "parent": card["id"], NAMES: named[name]} for card in bases for name in named]
    return models | {"data": [*(card | {ENGINE: about} for card in bases), *steered]}
