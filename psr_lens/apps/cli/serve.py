"""`psr-lens serve`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from psr_lens.apps.cli.common import app, one_line_errors, say


class _WithFurtherArguments(TyperCommand):
    """A command that takes what stands behind `--` as the values of its option `--further`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse all arguments."""
        own = args.index("--") if "--" in args else len(args)
        return list(super().parse_args(ctx, [*args[:own], *(f"--further={each}" for each in args[own + 1 :])]))


@app.command(cls=_WithFurtherArguments, epilog="Further arguments for `vllm serve` come last, behind --.")
def serve(
    model: Annotated[str, typer.Argument(help="A local Hugging Face folder, or a name that transformers finds.")],
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of replacements or plans that were fitted on the model, served by their names. Without any, the model alone is "
            "served: psr-lens run --engine vllm begins with that."
        ),
    ] = None,
    *,
    name: Annotated[
        list[str] | None, typer.Option(help="An artifact by another name than its folder's: pirate=folder. Repeatable.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default, this machine alone can reach the server.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    further: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve a model with its replacements, by vLLM's server for OpenAI clients.

    Each request says what steers it, in the model's name (base+pirate@0.8) or in its vllm_xargs. Ctrl-C ends the server.
    """
    with one_line_errors():
        from psr_lens.apps.server import ServerConfig, server_of

        server_of(ServerConfig(model, _named(artifacts or (), name or ()), host, port, tuple(further or ()))).run(say)


def _named(artifacts: Sequence[Path], given: Sequence[str]) -> dict[str, Path]:
    """The folders by their names.

    Raises:
        InputError: two have the same name, or one has none.
    """
    from psr_lens.errors import InputError

    pairs = [(folder.resolve().name, folder) for folder in artifacts]
    for text in given:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise InputError("name", repr(text), "a name and a folder, as in pirate=pirate-psr")
        pairs.append((name, Path(path)))
    found: dict[str, Path] = {}
    for name, folder in pairs:
        if name in found:
            raise InputError("artifacts", f"{name!r} twice", "another name for each", f"Give one as `--name {name}-2={folder}`.")
        if set(name) & set("@+,/"):
            raise InputError("artifacts", repr(name), "names without '@', '+', ',' and '/'", f"Give it as `--name NAME={folder}`.")
        found[name] = folder
    return found
