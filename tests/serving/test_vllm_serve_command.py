"""`psr-lens serve` with vLLM."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own")

import openai
from vllm_server import ENVIRONMENT, SMALL

from psr_lens.apps.server import ServerConfig, server_of
from psr_lens.errors import ModelError

PROMPT = [9, 30, 200, 41, 7, 66]


def test_it_serves_until_it_is_ended(tiny_for_vllm):
    tiny = tiny_for_vllm("llama")
    command = [sys.executable, "-m", "psr_lens", "serve", str(tiny.folder), tiny.saved["post"]]
    options = [
        "--name",
        f"pirate={tiny.saved['rules']}",
        "--port",
        "0",
        "--",
        *SMALL,
        "--served-model-name",
        "base",
        "--api-key",
        "key",
    ]
    environment = os.environ | ENVIRONMENT | {"VLLM_PLUGINS": "another"}
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            said = next(line for line in process.stdout if " serves " in line)
            url, _, models = said.partition(" serves ")
            assert models == "base, base+post, base+pirate\n"
            client = openai.OpenAI(base_url=url, api_key="key", max_retries=0, timeout=60)
            extra = {"ignore_eos": True, "return_token_ids": True}
            for model, wanted in (("base", (None, 0)), ("base+post@0.5", ("post", 0.5)), ("base+pirate", ("rules", 1.0))):
                found = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=8, extra_body=extra)
                assert found.choices[0].token_ids == tiny.greedy(PROMPT, *wanted, 8)
            with pytest.raises(openai.AuthenticationError):  # and nothing of what is served is said to a stranger
                client.with_options(api_key="other").completions.create(model="base+parrot", prompt=PROMPT)
        finally:
            process.terminate()
        process.wait(60)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


def test_a_server_without_the_plugin_is_stopped(tiny_for_vllm):
    tiny = tiny_for_vllm("llama")
    made = server_of(ServerConfig(str(tiny.folder), {"post": Path(tiny.saved["post"])}, port=0, further=SMALL))
    bare = replace(made, environment=os.environ | ENVIRONMENT | {"VLLM_PLUGINS": "another"})
    with pytest.raises(ModelError, match=r"the plugin of psr_lens is not in force here.* so it was stopped"):
        bare.run(lambda text: pytest.fail(text))
    with pytest.raises(openai.APIConnectionError):
        openai.OpenAI(base_url=made.address, api_key="none", max_retries=0).models.list()
