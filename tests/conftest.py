"""No network, one thread, and what all tests share (`shared_fixtures.py`) in every process that runs tests."""

import os
from zlib import crc32

import pytest

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
os.environ["OMP_NUM_THREADS"] = (
    "1"  # in processes that tests start, too: the models are tiny, and threads only get in each other's way
)


FIRST = ("test_architectures.py", "test_demo.py", "test_pages.py", "test_code_blocks.py", "test_examples.py")
"""The dearest files, which begin first: a process that got one of them last would still be busy when the other has nothing left to do."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--matrix FILE`: where the architecture matrix writes what it found. `--sample N`: about one test in N."""
    parser.addoption("--matrix", help="write what the architecture matrix found to this JSON file")
    parser.addoption("--sample", type=int, default=1, metavar="N", help="run about one test in N, always the same ones")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files; leave out what `--sample` does not choose, by the name alone, so that a new test does not change the choice."""
    apart = [[], []]
    for item in items:
        apart[crc32(item.nodeid.encode()) % config.getoption("--sample") > 0].append(item)
    items[:], left_out = apart
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
    config.hook.pytest_deselected(items=left_out)


def pytest_configure(config: pytest.Config) -> None:
    """The process that only hands out tests needs neither torch nor a model: it would take ten seconds before the first test."""
    hands_out_tests = bool(config.getoption("numprocesses", None))
    if not hands_out_tests:
        config.pluginmanager.import_plugin("shared_fixtures")
