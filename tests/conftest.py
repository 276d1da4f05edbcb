"""No network, and what all tests share (`shared_fixtures.py`) in every process that runs tests."""

import os

import pytest

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--matrix FILE`: where the architecture matrix writes what it found."""
    parser.addoption("--matrix", help="write what the architecture matrix found to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    """The process that only hands out tests needs neither torch nor a model: it would take ten seconds before the first test."""
    hands_out_tests = bool(config.getoption("numprocesses", None))
    if not hands_out_tests:
        config.pluginmanager.import_plugin("shared_fixtures")
