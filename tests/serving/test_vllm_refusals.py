"""What an engine does not start with, and what a request may not ask for."""

import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs this in an environment of its own")

from dataclasses import replace

from vllm import SamplingParams

from psr_lens.errors import ArtifactError, InputError, ModelError
from psr_lens.replacement import Replacement
from psr_lens.serving import plugin


def test_the_plugin_needs_no_transformer_lens():
    code = "import sys; sys.modules['transformer_lens'] = None; import psr_lens.serving.plugin as p; p.register(); print('fine')"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert finished.stdout.strip().endswith("fine"), finished.stderr
