"""The errors that psr_lens raises of its own: each says what came, what was expected and what to do."""

from __future__ import annotations

from typing import Any


class PsrLensError(Exception):
    """Base of every error of this package."""


class InputError(PsrLensError, ValueError):
    """An argument cannot be used as it came."""

    def __init__(self, argument: str, got: object, expected: str, remedy: str = "") -> None:
        """Make the message from the argument's name, what came, what was expected and what to do about it."""
        super().__init__(f"{argument}: got {got}, expected {expected}." + (f" {remedy}" if remedy else ""))


class MissingPackageError(PsrLensError, ImportError):
    """A package that only some parts need is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Make the message from the package's name and the extra that brings it."""
        super().__init__(f"{package} is not installed. `pip install psr-lens[{extra}]` brings it.")


class ModelError(PsrLensError, ValueError):
    """A model cannot be loaded, or lacks what is needed of it."""


class ArtifactError(PsrLensError, ValueError):
    """A saved artifact is damaged, of another format, made for another model, or cannot be had."""


class FitError(PsrLensError, RuntimeError):
    """A fit cannot go on."""

    def __init__(self, message: str, partial: Any = None) -> None:
        """Keep what was learned before, if anything was."""
        super().__init__(message)
        self.partial = partial
        """The last good state, a `Replacement`, where training had begun; else None."""


class JudgeError(PsrLensError, RuntimeError):
    """A judge cannot score anything: its server, its key or its model is not there."""
