"""vLLM's own server with replacements: what can be known before it starts is checked then, and whether it steers, right after."""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from psr_lens._utils.header_text import is_header_text
from psr_lens.errors import InputError, MissingPackageError, ModelError
from psr_lens.models.sources import find_source
from psr_lens.models.transformers_model import architecture_of, read_config
from psr_lens.serving.middleware import XARGS, SteeredModels
from psr_lens.serving.requests import NAMES, SERVES_NONE
from psr_lens.serving.served import CONFIG, Served, served_by
from psr_lens.serving.steered_model import check_model

MODULE: Final = "vllm.entrypoints.launchers.api_server.entry"
"""What `vllm serve` runs; that command itself asks for the version of a package `vllm`, which the CPU build is not."""
_GROUP: Final = "vllm.general_plugins"
_PLUGINS: Final = "VLLM_PLUGINS"
_KEY: Final = "VLLM_API_KEY"
_PLUGIN: Final = "psr_lens"
_DEFAULTS: Final = {"VLLM_USE_V2_MODEL_RUNNER": "0"}
"""Variables that are set unless the user has set them."""
_OURS: Final = ("additional-config", "host", "model", "port")
"""vLLM's arguments that the command sets."""
_UNREACHABLE: Final = (
    "api-server-count",
    "config",
    "grpc",
    "headless",
    "uds",
    "ssl-keyfile",
    "ssl-certfile",
    "ssl-ca-certs",
    "root-path",
)
"""vLLM's arguments with which the server would not be found where it is looked for, or not as one process."""
_SHORT: Final = {"-asc": "api-server-count"}
"""Other names of these."""
_FEWEST: Final = 3
"""Characters of a name's beginning that are taken for it."""
_LONGEST_ANSWER: Final = 60.0
_PATIENCE: Final = 60.0
"""Seconds without an answer after which a sentence is said."""
_GRACE: Final = 30.0
"""Seconds that a server has to end by itself."""


@dataclass(frozen=True)
class ServerConfig:
    """What is served, and where."""

    model: str
    """A folder, or a name that transformers finds."""
    artifacts: Mapping[str, Path]
    """Folders of replacements or plans by the names that requests give; none for the model alone."""
    host: str = "127.0.0.1"
    """The address that the server listens on."""
    port: int = 8000
    """The port; 0 for any that is free."""
    further: Sequence[str] = field(default=())
    """Arguments that are handed on to `vllm serve`."""


@dataclass(frozen=True)
class Server:
    """A server that can be started."""

    command: Sequence[str]
    """What starts it."""
    environment: Mapping[str, str]
    """The variables that it is started with."""
    address: str
    """Where it answers, without the path."""
    model: str
    """The first name of its model."""
    names: Sequence[str]
    """The names of its replacements."""
    key: str | None = None
    """The key of its API."""

    def run(self, say: Callable[[str], None]) -> None:
        """Start it, check that it steers, and wait until it ends; Ctrl-C and SIGTERM end it.

        Args:
            say: Is told the address, once the server has been checked, and before, once, if it does not answer for long.

        Raises:
            ModelError: it ended by itself, or would answer unsteered.
        """
        with _ended_by_sigterm(), self._started() as process:
            patience = time.monotonic() + _PATIENCE
            while not self._answers():
                if process.poll() is not None:
                    raise ModelError(
                        f"vllm: the server ended (exit code {process.returncode}) before it answered. See its messages above."
                    )
                if time.monotonic() > patience:
                    patience = math.inf
                    say(
                        f"The server has not answered at {self.address} for {_PATIENCE:g} seconds. Large models take minutes; "
                        "see its messages above. Ctrl-C ends it."
                    )
                time.sleep(0.2)
            self.check()
            steered = [f"{self.model}+{name}" for name in self.names]
            models = ", ".join([self.model, *steered]) if steered else f"{self.model}, and no replacement yet"
            say(f"{self.address}/v1 serves {models}\nCtrl-C ends it.")
            if code := process.wait():
                raise ModelError(f"vllm: the server ended (exit code {code}). See its messages above.")

    def check(self) -> None:
        """Ask for a replacement that does not exist, which is refused where replacements are in force.

        Raises:
            ModelError: it was not refused, or not by psr_lens, or other replacements are served, or there was no answer.
        """
        asked = {"model": self.model, "prompt": "a", "max_tokens": 1, XARGS: {NAMES: secrets.token_hex(8)}}
        try:
            status, text = self._ask("/v1/completions", asked)
        except (OSError, HTTPException) as error:
            told = " ".join(str(error).split())
            raise ModelError(
                f"vllm: the server gave no answer to a request with an unknown replacement ({type(error).__name__}: {told}), so it is not "
                "known whether it steers, and it was stopped. See its messages above."
            ) from error
        try:
            message = str(json.loads(text)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = ""
        names = ", ".join(map(repr, self.names))
        listed = f"expected one of the replacements that are served: {names}." if names else f"expected {SERVES_NONE}."
        if status != 400 or not message.startswith(f"{NAMES}: got ") or listed not in message:
            raise ModelError(
                f"vllm: a request with an unknown replacement was answered with status {status} ({text[:200]!r}), expected 400 and "
                f"{'the names that are served' if names else 'that none is served'}. The server would answer unsteered, so it was stopped."
            )

    def _answers(self) -> bool:
        with suppress(OSError, HTTPException):
            return self._ask("/health")[0] == 200
        return False

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, str]:
        """Status and text of an answer."""
        headers = {"Content-Type": "application/json"} | ({} if self.key is None else {"Authorization": f"Bearer {self.key}"})
        request = Request(f"{self.address}{path}", None if body is None else json.dumps(body).encode(), headers)
        opener = build_opener(ProxyHandler({}))  # no proxy knows this machine's ports
        try:
            with opener.open(request, timeout=_LONGEST_ANSWER) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except HTTPError as error:
            with error:
                return error.code, error.read().decode(errors="replace")

    @contextmanager
    def _started(self) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(self.command, env=dict(self.environment))
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def server_of(config: ServerConfig) -> Server:
    """The server that a config asks for, after all checks that need no vLLM.

    Raises:
        MissingPackageError: vLLM is not installed.
        InputError: the model's architecture is not served, or an argument is invalid.
        ArtifactError: an artifact cannot be read, or was made for another model.
        ModelError: the folder holds no model, or psr_lens is not installed as a plugin.
    """
    if find_spec("vllm") is None:
        raise MissingPackageError("vllm", "vllm")
    _check_further(config.further)
    folders = {name: str(folder.resolve()) for name, folder in config.artifacts.items()}
    configuration = {CONFIG: folders} if folders else {}
    served = served_by(configuration) or Served({}, {})
    location, name = _checked_model(config.model, served)
    port = _free_port(config.host, config.port)
    own = ["--model", location, "--host", config.host, "--port", str(port), "--additional-config", json.dumps(configuration)]
    names = _values(config.further, "served-model-name")
    middleware = f"{SteeredModels.__module__}.{SteeredModels.__name__}"
    command = [sys.executable, "-m", MODULE, *([] if names else ["--served-model-name", name])]
    return Server(
        [*command, *config.further, "--middleware", middleware, *own],
        _environment(os.environ),
        f"http://{_reachable(config.host)}:{port}",
        names[0] if names else name,
        list(folders),
        _key(config.further),
    )


def _checked_model(model: str, served: Served) -> tuple[str, str]:
    """Where vLLM finds the model, and its name."""
    source = find_source(model)
    if source.gguf is not None or (source.folder is not None and not (source.folder / "config.json").is_file()):
        raise InputError("model", repr(model), "a folder with a config.json and weights, or a name that transformers finds")
    config = read_config(source)
    check_model(architecture_of(config), config.get_text_config(), served)
    return source.location, source.name


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables of the server, in which vLLM loads the plugin."""
    if not any(each.name == _PLUGIN for each in entry_points(group=_GROUP)):
        raise ModelError("vllm: psr_lens is not installed as a plugin in this environment. Install it with pip, beside vLLM.")
    made = _DEFAULTS | dict(given)
    if _PLUGINS in made:
        plugins = [each.strip() for each in made[_PLUGINS].split(",") if each.strip()]
        made[_PLUGINS] = ",".join(plugins if _PLUGIN in plugins else [*plugins, _PLUGIN])
    return made


def _check_further(further: Sequence[str]) -> None:
    for given in further:
        if name := _refused(given, _OURS):
            raise InputError("further arguments", repr(given), f"no --{name}, which the command itself sets")
        if name := _refused(given, _UNREACHABLE):
            raise InputError(
                "further arguments", repr(given), f"no --{name}, with which the server could not be checked", "Use `vllm serve`."
            )


def _refused(given: str, names: Sequence[str]) -> str | None:
    """Which of some options an argument is: vLLM takes beginnings of their names too."""
    name = _SHORT.get(given.partition("=")[0], _option(given))
    return next((each for each in names if name == each or (len(name) >= _FEWEST and each.startswith(name))), None)


def _key(further: Sequence[str]) -> str | None:
    """The key that the server will ask for, which messages never show."""
    given = _values(further, "api-key")
    found = given[0] if given else os.environ.get(_KEY)
    if found is not None and (not is_header_text(found) or found != found.strip()):
        expected = "a key of Latin-1 characters without control characters, or spaces around it"
        raise InputError("--api-key" if given else _KEY, "a key that cannot be sent (not shown)", expected, "Set it again.")
    return found


def _option(given: str) -> str:
    """The name of an option of vLLM's, which may have underscores, a value or a key of a mapping behind it; empty for a value."""
    return given[2:].partition("=")[0].partition(".")[0].replace("_", "-") if given.startswith("--") else ""


def _values(further: Sequence[str], option: str) -> list[str]:
    """The values of the last mention of an option."""
    found: list[str] = []
    taking = False
    for given in further:
        if given.startswith("-"):
            taking = _option(given) == option
            if taking:
                found = [given.partition("=")[2]] if "=" in given else []
        elif taking:
            found.append(given)
    return found


def _reachable(host: str) -> str:
    """Where a server that listens on an address answers on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        InputError: it is taken, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was used just now is free
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError("port", f"{port} on {host!r}", "one that is free", f"{error}.") from error
        return int(probe.getsockname()[1])


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as an exception does, so that the server ends too."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
