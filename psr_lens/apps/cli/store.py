"""`psr-lens store …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from psr_lens.apps.cli.common import app, one_line_errors, say

store_app = typer.Typer(help="Inspect stores of captured activation differences.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="Folder of the store.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read the whole store and check every checksum.")] = False,
) -> None:
    """Show what a store holds, finished or not."""
    with one_line_errors():
        from psr_lens.activations.store import Store

        store = Store.open(folder, partial=True)
        say(str(store.summary()))
        if verify:
            Store.open(folder).verify()
            say("all checksums match")
