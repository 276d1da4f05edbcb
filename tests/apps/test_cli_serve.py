"""`psr-lens serve` as far as it goes without vLLM: what it starts, what it refuses, and servers of which it makes sure."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import random_replacement
from transformers import AutoConfig
from typer.testing import CliRunner

from psr_lens.apps import server
from psr_lens.apps.cli import app
from psr_lens.apps.server import MODULE, Server, ServerConfig, server_of
from psr_lens.errors import ModelError
from psr_lens.replacement import Replacement, Site


def call(*arguments):
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """As if vLLM and the plugin were installed, and no variable were set."""
    monkeypatch.setattr(server, "find_spec", lambda name: {"vllm": name}[name])
    monkeypatch.setattr(server, "entry_points", lambda group: {"vllm.general_plugins": [SimpleNamespace(name="psr_lens")]}[group])
    for name in ("VLLM_PLUGINS", "VLLM_API_KEY", "VLLM_USE_V2_MODEL_RUNNER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def saved(organism, tmp_path):
    """Two replacements for the organism."""
    return [random_replacement(organism.model, seed=seed).save(tmp_path / name) for seed, name in enumerate(("pirate", "brief"))]


@pytest.fixture
def started(monkeypatch):
    """The servers that would have been started."""
    found = []
    monkeypatch.setattr(Server, "run", lambda self, say: found.append(self))
    return found


def test_it_starts_vllms_server_with_the_plugin_set_up(organism, saved, started):
    pirate, brief = saved
    assert call("organism", pirate, "--name", f"short={brief}", "--port", 0, "--", "--max-model-len", "64") == (0, "")
    (made,) = started
    port = made.address.removeprefix("http://127.0.0.1:")
    folders = {"psr": {"pirate": str(pirate), "short": str(brief)}}
    assert made.command[:5] == [sys.executable, "-m", MODULE, "--served-model-name", "organism"]
    assert made.command[5:] == [
        *("--max-model-len", "64", "--middleware", "psr_lens.serving.middleware.SteeredModels"),
        *("--model", str(organism.folder), "--host", "127.0.0.1", "--port", port, "--additional-config", json.dumps(folders)),
    ]
    assert (made.model, made.names, made.key) == ("organism", ["pirate", "short"], None)
    assert made.environment == {**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "0"}


def test_the_model_alone_is_served_without_artifacts(organism, started):
    assert call("organism", "--port", 0, "--", "--dtype", "bfloat16") == (0, "")
    (made,) = started
    assert list(made.names) == []
    assert made.command[made.command.index("--additional-config") + 1] == "{}"
    assert made.command[made.command.index("--middleware") + 1] == "psr_lens.serving.middleware.SteeredModels"


def test_what_the_user_says_to_vllm_is_taken_into_account(saved, started, monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setenv("VLLM_API_KEY", "from the environment")
    call("organism", *saved, "--port", 0, "--", "--served_model_name", "a", "b", "--seed", "3")
    call("organism", *saved, "--port", 0, "--host", "0.0.0.0", "--", "--served-model-name=c", "--api-key", "secret", "other")
    first, second = started
    assert (first.model, first.key) == ("a", "from the environment")
    assert (second.model, second.key) == ("c", "secret")
    assert "organism" not in [*first.command, *second.command]
    assert first.environment["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    assert second.address.startswith("http://127.0.0.1:")
    assert "0.0.0.0" in second.command


def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(saved, started, monkeypatch):
    for key in ("secret\n", " secret", "sec\u0163ret"):
        monkeypatch.setenv("VLLM_API_KEY", key)
        code, output = call("organism", *saved, "--port", 0)
        assert (code, "VLLM_API_KEY: got a key that cannot be sent (not shown)" in output) == (2, True), output
        monkeypatch.delenv("VLLM_API_KEY")
        code, other = call("organism", *saved, "--port", 0, "--", "--api-key", key)
        assert (code, "--api-key: got a key that cannot be sent (not shown)" in other) == (2, True), other
        assert "ret" not in output + other
    assert not started


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", "psr_lens"), ("other", "other,psr_lens"), ("psr_lens", "psr_lens"), (" other , psr_lens", "other,psr_lens")],
)
def test_vllm_loads_the_plugin_whatever_plugins_are_named(given, expected, saved, started, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", given)
    call("organism", *saved, "--port", 0)
    assert started[0].environment["VLLM_PLUGINS"] == expected


def test_a_missing_package_and_a_missing_plugin_are_said(saved, started, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(server, "find_spec", lambda name: None)
        assert call("organism", *saved) == (2, "error: vllm is not installed. `pip install psr-lens[vllm]` brings it.")
    monkeypatch.setattr(server, "entry_points", lambda group: [SimpleNamespace(name="other")])
    code, output = call("organism", *saved, "--port", 0)
    assert (code, "psr_lens is not installed as a plugin" in output) == (2, True), output
    assert not started


def test_what_cannot_be_served_is_refused_before_anything_starts(saved, started, folders, tmp_path):
    pirate, brief = saved
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (
            ["organism", pirate, pirate],
            "artifacts: got 'pirate' twice, expected another name for each. Give one as `--name pirate-2=",
        ),
        (["organism", pirate, "--name", f"pirate={brief}"], "artifacts: got 'pirate' twice"),
        (["organism", "--name", "pirate"], "name: got 'pirate', expected a name and a folder, as in pirate=pirate-psr"),
        (["organism", "--name", f"={pirate}"], "expected a name and a folder"),
        (["organism", "--name", f"a+b={pirate}"], "artifacts: got 'a+b', expected names without '@', '+', ',' and '/'"),
        (["organism", tmp_path / "nowhere"], "nowhere"),
        (["organism", tmp_path / "empty"], "empty"),
        ([tmp_path / "empty", pirate], "empty holds no config.json"),
        ([tmp_path / "no" / "where" / "else", pirate], "model: got "),
        ([folders["llama"], pirate], "has d_model=32"),
        ([folders["stablelm"]], "model: got StableLmForCausalLM, expected one of LlamaForCausalLM"),
        ([folders["stablelm"], pirate], "model: got StableLmForCausalLM, expected one of LlamaForCausalLM"),
        (["organism", pirate, "--port", 70000], "port: got 70000 on '127.0.0.1', expected one that is free"),
        (
            ["organism", pirate, "--", "--port", "3"],
            "further arguments: got '--port', expected no --port, which the command itself sets",
        ),
        (["organism", pirate, "--", "--additional_config={}"], "expected no --additional-config"),
        (["organism", pirate, "--", "--additional-config.psr.a", "b"], "expected no --additional-config"),
        (["organism", pirate, "--", "--api-server-count=2"], "expected no --api-server-count"),
        (["organism", pirate, "--", "--ssl-certf", "c"], "got '--ssl-certf', expected no --ssl-certfile, with which the server"),
        (["organism", pirate, "--", "--head"], "expected no --headless"),
        (["organism", pirate, "--", "--api_server=2"], "expected no --api-server-count"),
        (["organism", pirate, "--", "-asc", "2"], "expected no --api-server-count"),
        (["organism", pirate, "--", "-asc=2"], "expected no --api-server-count"),
        (["organism", pirate, "--", "--additional.psr.a", "b"], "expected no --additional-config"),
        (["organism", pirate, "--", "--hos=0.0.0.0"], "expected no --host, which the command itself sets"),
        (["organism", pirate, "--", "--ssl-keyfile", "k"], "expected no --ssl-keyfile, with which the server could not be checked"),
    ):
        code, output = call(*arguments)
        assert (code, message in output) == (2, True), (arguments, output)
    assert not started


def test_options_of_other_names_are_handed_on(saved, started):
    further = ["--api-key", "con", "--config-format", "hf", "--model-impl=auto", "--hosts", "a", "-O", "api-server", "--no"]
    assert call("organism", saved[0], "--port", 0, "--", *further) == (0, "")
    assert started[0].command[5 : 5 + len(further)] == further


def test_a_port_that_is_taken_is_refused(saved, started):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, output = call("organism", saved[0], "--port", taken.getsockname()[1])
    assert (code, "expected one that is free" in output) == (2, True), output
    assert not started


FAKE = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, "")
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status, message = STATUS, MESSAGE
        if self.headers["authorization"] != "Bearer key":
            status = 401
        self.answer(status, json.dumps({"error": {"message": message.replace("NAME", asked["vllm_xargs"]["psr"])}}))
    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *given):
        pass

server = HTTPServer(("127.0.0.1", PORT), Handler)
END
"""
RIGHT = "psr: got 'NAME', expected one of the replacements that are served: 'pirate', 'brief'."
NONE = "psr: got 'NAME', expected no replacement, since this engine serves none. Start it with more."


@pytest.fixture
def fake(tmp_path):
    """`fake(status, message)`: a server that answers so, and writes a file when it is ended by SIGTERM."""

    def made(status, message, end="server.serve_forever()", key="key", names=("pirate", "brief")):
        port = server._free_port("127.0.0.1", 0)
        code = FAKE.replace("STATUS", str(status)).replace("MESSAGE", repr(message)).replace("PORT", str(port)).replace("END", end)
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        return Server([sys.executable, "-c", code], environment, f"http://127.0.0.1:{port}", "base", names, key)

    return made


def is_free(address):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (200, "it answered"),
        (200, RIGHT),
        (400, "vllm_xargs: unknown"),
        (400, RIGHT.replace(", 'brief'", "")),
        (400, RIGHT.replace("'brief'.", "'brief', 'other'.")),
        (400, "psr: got 'NAME', expected no replacement, since this engine serves none."),
        (500, RIGHT),
    ],
)
def test_a_server_that_does_not_refuse_what_is_unknown_is_stopped(status, message, fake):
    made = fake(status, message)
    with pytest.raises(ModelError, match=f"was answered with status {status} .* so it was stopped"):
        made.run(lambda text: pytest.fail(text))
    assert is_free(made.address)


def test_a_server_without_replacements_is_told_from_one_that_does_not_refuse_them(fake):
    said = []
    ending = "import threading; threading.Timer(3, lambda: os._exit(4)).start(); server.serve_forever()"
    made = fake(400, NONE, ending, names=())
    with pytest.raises(ModelError, match=r"the server ended \(exit code 4\)\. See"):
        made.run(said.append)
    assert said == [f"{made.address}/v1 serves base, and no replacement yet\nCtrl-C ends it."]
    for status, message in ((200, NONE), (400, RIGHT), (400, "vllm: the plugin of psr_lens is not in force here.")):
        with pytest.raises(
            ModelError, match=rf"was answered with status {status} .* expected 400 and that none is served\. .* stopped"
        ):
            fake(status, message, names=()).run(lambda text: pytest.fail(text))


def test_a_key_that_is_wrong_or_missing_is_no_refusal(fake):
    for key in (None, "other"):
        with pytest.raises(ModelError, match="was answered with status 401"):
            fake(400, RIGHT, key=key).run(lambda text: pytest.fail(text))


def test_a_server_that_ends_by_itself_is_said(fake):
    with pytest.raises(ModelError, match=r"the server ended \(exit code 3\) before it answered"):
        fake(400, RIGHT, "sys.exit(3)").run(lambda text: pytest.fail(text))
    said = []
    ending = "import threading; threading.Timer(3, lambda: os._exit(4)).start(); server.serve_forever()"
    with pytest.raises(ModelError, match=r"the server ended \(exit code 4\)\. See"):
        fake(400, RIGHT, ending).run(said.append)
    assert len(said) == 1


@pytest.mark.parametrize("instead", ["os._exit(5)", "self.wfile.write(b'babble' + bytes([13, 10]))"])
def test_a_server_that_dies_or_babbles_while_it_is_checked_is_said(instead, fake):
    made = fake(400, RIGHT, f"Handler.do_POST = lambda self: {instead}\nserver.serve_forever()")
    with pytest.raises(ModelError, match=r"gave no answer to a request with an unknown replacement \(\w+: .*and it was stopped"):
        made.run(lambda text: pytest.fail(text))
    assert is_free(made.address)


def test_a_server_that_does_not_answer_for_long_is_said_once_and_waited_for(fake, monkeypatch):
    """Meanwhile something else may answer at its address, which speaks no HTTP."""
    monkeypatch.setattr(server, "_PATIENCE", 0.1)
    said = []
    babble = (
        "import socket, threading, time; "
        "threading.Timer(5, lambda: os._exit(4)).start()\n"
        "for _ in range(3):\n    found, _ = server.socket.accept(); found.sendall(b'babble\\r\\n'); found.close(); time.sleep(0.2)\n"
        "server.serve_forever()"
    )
    with pytest.raises(ModelError, match=r"the server ended \(exit code 4\)\. See"):
        fake(400, RIGHT, babble).run(said.append)
    waited, serves = said
    assert waited.startswith("The server has not answered at http://127.0.0.1:")
    assert " for 0.1 seconds. " in waited
    assert "serves base" in serves


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_the_server_too(number, fake, tmp_path):
    made = fake(400, RIGHT)
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # ignored in what a shell runs in the background
        "from psr_lens.apps.server import Server; "
        f"Server({list(made.command)!r}, {dict(made.environment)!r}, {made.address!r}, 'base', ['pirate', 'brief'], 'key')"
        ".run(lambda text: print(text, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        try:
            assert process.stdout.readline() == f"{made.address}/v1 serves base, base+pirate, base+brief\n"
            assert not is_free(made.address)
            process.send_signal(number)
            process.wait(60)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode != 0
    for _ in range(100):
        if is_free(made.address):
            break
        time.sleep(0.1)
    assert is_free(made.address)


def test_addresses_are_reached_from_this_machine():
    for host, reached in (("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.1.2.3", "10.1.2.3")):
        assert server._reachable(host) == reached


def test_a_name_that_transformers_finds_is_handed_on(fetched, tmp_path):
    tiny = AutoConfig.from_pretrained(fetched)
    site = Site(torch.ones(1, tiny.n_embd), torch.ones(1, tiny.n_embd), torch.ones(1), "relu")
    folder = Replacement({"blocks.0.hook_resid_post": site}, "R", "random", {}).save(tmp_path / "pirate")
    made = server_of(ServerConfig("gpt2", {"pirate": folder}, port=0))
    assert made.model == "gpt2"
    assert made.command[made.command.index("--model") + 1] == "gpt2"
