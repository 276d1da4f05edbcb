"""What all commands share: the application, the console, and errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

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
    """Our own errors in one line and exit code 2; anything else is a bug and keeps its traceback."""
    from psr_lens.errors import PsrLensError

    try:
        yield
    except PsrLensError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
