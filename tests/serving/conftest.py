"""Fixtures of the tests with vLLM. Imports are within, as `typecheck.install` says."""

import os
from functools import cache

import pytest

os.environ.update(  # before vLLM is imported, which reads them then
    {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
)


@pytest.fixture(scope="session")
def tiny_for_vllm(tmp_path_factory):
    """`tiny_for_vllm(family)`: made when it is first asked for."""
    from vllm_models import tiny_model

    return cache(lambda family: tiny_model(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="session")
def engine():
    """`with engine(tiny, **settings) as llm`."""
    from vllm_models import engine_of

    return engine_of


@pytest.fixture(scope="module")
def llama(tiny_for_vllm, engine):
    """An engine that the tests of a file share, with its model."""
    tiny = tiny_for_vllm("llama")
    with engine(tiny) as llm:
        yield tiny, llm
