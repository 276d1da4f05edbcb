"""Who may talk to the playground's server: this machine's browser, on the page that was opened with the key."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BYTES: Final = 200_000
"""Largest body of a request."""
HEADERS: Final = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""Headers of every answer: the page loads nothing and talks to nobody but this server."""


@dataclass(frozen=True)
class Guard:
    """Lets through what the page itself asks; everything else is refused before it is read.

    A page of another site can send requests to any port of this machine, and by DNS rebinding even read the answers. It knows neither the
    key, which is in the address after `#` and so is sent nowhere, nor can it forge the headers Host and Origin.
    """

    application: Application
    """What answers."""
    host: str
    """Host and port, as they stand in the address."""
    key: str
    """The key."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        sender = _with_headers(send)
        refused = self._refused(scope)
        if refused is None and scope["method"] == "POST":
            body = await _body(receive)
            if body is None:
                refused = 413, f"The request is larger than {MOST_BYTES:,} bytes."
            else:
                scope["psr_lens.json"], refused = _read(body)
        if refused is not None:
            await _refuse(sender, *refused)
            return
        await self.application(scope, receive, sender)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        given: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.lower(), []).append(value)
        if given.get(b"host") != [self.host.encode()]:
            return 421, "The header Host is not this server's."
        origin = given.get(b"origin")
        if origin is not None and origin != [f"http://{self.host}".encode()]:
            return 403, "The header Origin is not this server's."
        if scope["method"] in ("GET", "HEAD"):
            return None  # the files of the page, which hold no secret
        if scope["method"] != "POST":
            return 405, "Only GET and POST are answered."
        if origin is None:
            return 403, "The header Origin is missing."
        key = given.get(b"authorization", [b""])
        if len(key) != 1 or not hmac.compare_digest(key[0], f"Bearer {self.key}".encode()):
            return 401, "The key is missing or wrong. Open the address that was printed, with all that follows the #."
        if given.get(b"content-type") != [b"application/json"]:
            return 415, "The request is not JSON."
        return None


def _read(body: bytes) -> tuple[dict[str, Any], tuple[int, str] | None]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        return {}, (400, "The request is no JSON object.")
    return found, None


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too large."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        part = message.get("body", b"")
        size += len(part)
        if size > MOST_BYTES:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _with_headers(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = [each for each in message.get("headers", []) if each[0].lower().decode() not in HEADERS]
            message = {**message, "headers": [*given, *((name.encode(), value.encode()) for name, value in HEADERS.items())]}
        await send(message)

    return sender


async def _refuse(send: Send, status: int, why: str) -> None:
    body = json.dumps({"type": "error", "message": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
