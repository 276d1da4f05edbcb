"""vLLM's own OpenAI server in a process of its own, with the plugin, on this machine alone."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from socket import create_server

import openai
from vllm_models import BLOCK, CONTEXT, Tiny

from psr_lens.apps.server import MODULE

SMALL = [
    *("--dtype", "float32", "--max-model-len", str(CONTEXT), "--max-num-seqs", "8", "--block-size", str(BLOCK), "--seed", "0"),
    *("--enforce-eager", "--max-num-batched-tokens", "40"),
]
"""The settings of the engines in other tests."""
LONGEST_START = 300
ENVIRONMENT = {"VLLM_HOST_IP": "127.0.0.1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}


def free_port() -> int:
    with closing(create_server(("127.0.0.1", 0))) as probe:
        return probe.getsockname()[1]


class VllmServer:
    """vLLM's server with a model's replacements."""

    def __init__(self, tiny: Tiny, *more: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)
        command = [sys.executable, "-m", MODULE, "--model", str(tiny.folder), "--served-model-name", "base"]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--additional-config", json.dumps({"psr": tiny.saved})]
        self.process = subprocess.Popen([*command, *SMALL, *where, *more], env=os.environ | ENVIRONMENT, start_new_session=True)
        wait_until_healthy(self.url, self.process)

    def kill(self) -> None:
        """End it and all processes that it started, without a chance to put anything in order."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen) -> None:
    end = time.monotonic() + LONGEST_START
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended with {process.returncode}"
        try:
            openai.OpenAI(base_url=url, api_key="none", max_retries=0).get("/health", cast_to=str)
        except openai.APIConnectionError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("the server does not answer")


@contextmanager
def vllm_server(tiny: Tiny, *more: str, port: int | None = None):
    server = VllmServer(tiny, *more, port=port)
    try:
        yield server
    finally:
        server.kill()
