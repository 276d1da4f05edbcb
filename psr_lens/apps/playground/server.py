"""The playground as a page that this machine alone can open: a small server on the loopback interface."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

from psr_lens._utils.optional import package
from psr_lens.apps.playground.frozen import frozen
from psr_lens.apps.playground.guard import Guard
from psr_lens.apps.playground.page import SCRIPT, STYLE
from psr_lens.apps.playground.session import Session, explained
from psr_lens.errors import PsrLensError

LOOPBACK: Final = "127.0.0.1"
PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>psr_lens · playground</title>
<link rel="stylesheet" href="/play.css">
<link rel="icon" href="/icon.svg">
<script type="module" src="/play.js"></script>
</head>
<body class="psr-play-page">
<main class="psr-play" data-psr-play="server"></main>
</body>
</html>
"""
ICON: Final = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#0072B2"/>'
    '<path d="M4 12V4l8 4z" fill="#fff"/></svg>'
)


class Server:
    """A server for one session, on a free port of the loopback interface."""

    def __init__(self, session: Session) -> None:
        """Take a port.

        Raises:
            MissingPackageError: starlette or uvicorn is not installed.
        """
        self._session = session
        self._uvicorn = package("uvicorn", "play")
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.bind((LOOPBACK, 0))
        self._socket.listen()  # a browser that comes before `run` waits
        host = f"{LOOPBACK}:{self._socket.getsockname()[1]}"
        key = secrets.token_urlsafe(32)
        self.address = f"http://{host}/#key={key}"
        """What to open. The key after # opens it; browsers send it to nobody."""
        config = self._uvicorn.Config(
            Guard(application(session), host, key),
            log_level="error",
            access_log=False,
            lifespan="off",
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = self._uvicorn.Server(config)
        self._close, self._server.shutdown = self._server.shutdown, self._shutdown

    def run(self) -> None:
        """Serve until `stop` is called or the process is interrupted."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._session.stop()
            self._socket.close()

    async def _shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What uvicorn does at the end, but first let the run say its last to whoever reads it."""
        await asyncio.to_thread(self._session.stop)
        await self._close(sockets)

    def stop(self) -> None:
        """End `run`, from another thread."""
        self._server.should_exit = True


def application(session: Session) -> Any:
    """What answers the requests that the guard lets through; each POST has its JSON in `scope["psr_lens.json"]`."""
    applications, concurrency = package("starlette.applications", "play"), package("starlette.concurrency", "play")
    responses, routing = package("starlette.responses", "play"), package("starlette.routing", "play")

    def file(text: str, kind: str) -> Callable[[Any], Any]:
        async def give(request: Any) -> Any:
            return responses.Response(text, media_type=kind)

        return give

    def answering(function: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Any], Any]:
        async def answer(request: Any) -> Any:
            try:
                found = await concurrency.run_in_threadpool(function, request.scope["psr_lens.json"])
            except Exception as error:  # noqa: BLE001  (the page says it)
                expected = isinstance(error, PsrLensError)
                if not expected:
                    traceback.print_exc()
                message = {"type": "error", "message": explained(error)}
                return responses.JSONResponse(message, status_code=400 if expected else 500)
            return responses.JSONResponse(found)

        return answer

    def stop(asked: dict[str, Any]) -> dict[str, Any]:
        session.stop()
        return {"type": "stopped"}

    async def run(request: Any) -> Any:
        return responses.StreamingResponse(
            lines(session, request.scope["psr_lens.json"], concurrency.run_in_threadpool), media_type="application/x-ndjson"
        )

    get, post = {"methods": ["GET"]}, {"methods": ["POST"]}
    return applications.Starlette(
        routes=[
            routing.Route("/", file(PAGE, "text/html"), **get),
            routing.Route("/play.js", file(SCRIPT, "text/javascript"), **get),
            routing.Route("/play.css", file(STYLE, "text/css"), **get),
            routing.Route("/icon.svg", file(ICON, "image/svg+xml"), **get),
            routing.Route("/hello", answering(lambda asked: session.hello), **post),
            routing.Route("/run", run, **post),
            routing.Route("/stop", answering(stop), **post),
            routing.Route("/inspect", answering(session.inspect), **post),
            routing.Route("/freeze", answering(lambda asked: {"type": "frozen", "html": frozen(session.shown)}), **post),
        ]
    )


async def lines(session: Session, asked: dict[str, Any], in_thread: Callable[..., Any]) -> AsyncIterator[bytes]:
    """The messages of a run, one JSON object a line; the run is cancelled when nobody reads them any more."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any]]()

    began: list[int] = []
    left = threading.Event()

    def emit(message: dict[str, Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(queue.put_nowait, message)

    def begin() -> None:
        began.append(session.start(asked, emit))
        if left.is_set():
            session.cancel(began[0])

    try:
        await in_thread(begin)
        while True:
            message = await queue.get()
            yield json.dumps(message).encode() + b"\n"
            if message["type"] in ("end", "error"):
                return
    finally:
        left.set()
        for number in began:
            session.cancel(number)
