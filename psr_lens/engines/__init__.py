"""Engines: they sample responses in place of the model, faster, for the functions with an argument `engine`."""

from __future__ import annotations

from psr_lens.engines.vllm_engine import VLLMEngine, vllm
from psr_lens.engines.vllm_server import VLLMServer

__all__ = ["VLLMEngine", "VLLMServer", "vllm"]
