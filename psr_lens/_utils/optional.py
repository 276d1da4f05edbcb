"""Other packages: importing optional ones with a helpful error, and the versions that a result depends on."""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final

from psr_lens.errors import BrokenPackageError, MissingPackageError

MAKERS: Final = ("psr-lens", "torch", "transformer-lens", "transformers")
"""The packages that every result depends on."""


def package(module: str, extra: str) -> Any:
    """Import a module of an optional package.

    Raises:
        MissingPackageError: it is not installed; the message names the extra that installs it.
        BrokenPackageError: it is installed, but importing it fails.
    """
    name = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == name or find_spec(name) is None:
            raise MissingPackageError(name, extra) from error
        raise _broken(name, error) from error
    except Exception as error:  # a broken binary may raise anything
        raise _broken(name, error) from error


def _broken(name: str, error: Exception) -> BrokenPackageError:
    return BrokenPackageError(
        f"{name} is installed but cannot be imported ({type(error).__name__}: {error}). "
        f"Reinstall it: `pip install --force-reinstall {name}`."
    )


@cache
def versions(*others: str) -> tuple[tuple[str, str], ...]:
    """Names and versions of `MAKERS` and of other packages; "(not installed)" for a package that is not installed."""

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "(not installed)"

    return tuple((name, installed(name)) for name in (*MAKERS, *others))
