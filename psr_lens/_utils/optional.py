"""Other packages: those that only some parts need, what to install where one is missing, and the versions that made a number."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from psr_lens.errors import MissingPackageError

MAKERS: Final = ("psr-lens", "torch", "transformer-lens", "transformers")
"""The packages that every number of ours depends on."""


def package(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Raises:
        MissingPackageError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackageError(module.partition(".")[0], extra) from error


@cache
def versions(*others: str) -> tuple[tuple[str, str], ...]:
    """Names and versions of `MAKERS` and of other packages; "(not installed)" for one that is not there under its own name."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "(not installed)"

    return tuple((name, installed(name)) for name in (*MAKERS, *others))
