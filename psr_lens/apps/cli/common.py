"""What all commands share: the application, options, output, and errors on one line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

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

MODELS: Final = "organism, organism-gpt2, a model name that TransformerLens knows, or a local Hugging Face folder."
DTYPES: Final = "float32, bfloat16 or float16"

ModelOption = Annotated[str, typer.Option("--model", help=MODELS)]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, …; by default a GPU if there is one (one per process).")
]
VERIFY: Final = "Whether to check the model against plain transformers when it is loaded."
VerifyOption = Annotated[bool, typer.Option("--verify/--no-verify", help=VERIFY)]
MaxNewTokensOption = Annotated[
    int, typer.Option("--max-new-tokens", help="Maximum length of a response in tokens, if the file has no responses.")
]
PlaceOption = Annotated[
    str | None,
    typer.Option(
        "--place",
        help="Where the instruction goes: before or after the question, or default_system: after the template's own message.",
    ),
]
SystemOption = Annotated[
    str | None, typer.Option("--system", help="System message of both prompts, with and without the instruction.")
]
PrefixOption = Annotated[str | None, typer.Option("--prefix", help="Text that every response starts with.")]
BaseUrlOption = Annotated[
    str | None, typer.Option("--base-url", help="Address of the server of an llm judge, in place of that in the settings.")
]
ApiKeyEnvOption = Annotated[
    str | None,
    typer.Option(
        "--api-key-env",
        help="Environment variable with the key for --base-url (OpenAI's own server without it). A file of settings cannot name one.",
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of the sampled responses, if the file has none.")]


OpenOption = Annotated[bool, typer.Option("--open", help="Open the report in the browser at the end.")]


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


def chat_of(place: str | None, system: str | None, prefix: str | None) -> dict[str, str]:
    """Those of the options that were given, as arguments of `prompt_pairs`."""
    given = {"place": place, "system": system, "prefix": prefix}
    return {name: value for name, value in given.items() if value is not None}


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
