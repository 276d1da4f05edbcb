"""What all commands share: the application, output, and errors on one line. Their common options are in `option_groups`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

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


def _say_version(asked: bool) -> bool:
    if not asked:
        return False
    from psr_lens import __version__

    say(f"psr-lens {__version__}")
    raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """See and replace what a prompt does inside a language model."""


def say(text: str) -> None:
    """Print a text as it is: rich would highlight it, break its lines, expand its tabs, and take `:bear:` for a picture."""
    typer.echo(text)


def open_file(path: Path) -> None:
    """Open a file in the browser."""
    import webbrowser

    webbrowser.open(path.resolve().as_uri())


def say_where(out: Path | str, began: float) -> None:
    """Print where the results are, and how many seconds have passed since `began` (of `time.perf_counter`)."""
    say(f"→ {out}  ({time.perf_counter() - began:.0f} s)")


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print expected errors on one line: invalid input exits with 2; failures of a fit, a judge or the disk with 1.

    Any other exception is a bug and keeps its traceback. Ctrl-C exits with 130, as Typer does.
    """
    from psr_lens.errors import FitError, JudgeError, PsrLensError

    try:
        yield
    except (PsrLensError, OSError) as error:
        text = " ".join(str(error).split("\n"))
        Console(stderr=True).print("[bold red]error:[/]", escape(text), highlight=False, soft_wrap=True)
        raise typer.Exit(1 if isinstance(error, OSError | FitError | JudgeError) else 2) from error
