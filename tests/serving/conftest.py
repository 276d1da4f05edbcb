"""Fixtures of the tests with vLLM."""

from vllm_models import engine as engine
from vllm_models import llama as llama
from vllm_models import tiny_for_vllm as tiny_for_vllm
