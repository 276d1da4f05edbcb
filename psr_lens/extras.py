"""Packages that only some parts need, and what to install where one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from psr_lens.errors import MissingPackageError


def package(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Raises:
        MissingPackageError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(module.partition(".")[0], extra) from error
