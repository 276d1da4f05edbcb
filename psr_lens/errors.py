"""The errors that psr_lens raises: each names what it got, what it expected and what to do."""

from __future__ import annotations

from typing import Any


class PsrLensError(Exception):
    """Base class of every error that this package raises."""


class InputError(PsrLensError, ValueError):
    """An argument is invalid."""

    def __init__(self, argument: str, got: object, expected: str, remedy: str = "") -> None:
        """Build the message from the argument's name, its value, what was expected and what to do."""
        super().__init__(f"{argument}: got {got}, expected {expected}." + (f" {remedy}" if remedy else ""))


class MissingPackageError(PsrLensError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Build the message from the package's name and the extra that installs it."""
        super().__init__(f"{package} is not installed. `pip install psr-lens[{extra}]` brings it.")


class BrokenPackageError(PsrLensError, ImportError):
    """An optional package is installed but cannot be imported."""


class ModelError(PsrLensError, ValueError):
    """A model cannot be loaded, or lacks something that the call needs."""


class ArtifactError(PsrLensError, ValueError):
    """A saved artifact is missing, damaged, of another format or made for another model."""


class FitError(PsrLensError, RuntimeError):
    """A fit cannot continue."""

    def __init__(self, message: str, partial: Any = None) -> None:
        """Keep the last good state, if training had begun."""
        super().__init__(message)
        self.partial = partial
        """The last good state, a `Replacement`, if training had begun; otherwise None."""


class JudgeError(PsrLensError, RuntimeError):
    """A judge cannot score anything: its server, its API key or its model is missing."""
