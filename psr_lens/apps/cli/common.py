"""What all commands share: the application, the console, and errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    name="psr-lens",
    help="See and replace what a prompt does inside a language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()


@app.callback()
def main() -> None:
    """See and replace what a prompt does inside a language model."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors in one line: our own with exit code 2, of the disk with 1. Anything else is a bug and keeps its traceback.

    Ctrl-C ends a command with 130, as typer has it.
    """
    from psr_lens.errors import FitError, JudgeError, PsrLensError

    try:
        yield
    except (PsrLensError, OSError) as error:
        text = " ".join(str(error).split("\n"))
        Console(stderr=True).print("[bold red]error:[/]", escape(text), highlight=False, soft_wrap=True)
        raise typer.Exit(1 if isinstance(error, OSError | FitError | JudgeError) else 2) from error
