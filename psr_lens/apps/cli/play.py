"""`psr-lens play`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from psr_lens.apps.cli.common import app, one_line_errors, say
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.apps.cli.option_groups import MODELS, ChatOptions, LoadingOptions


@app.command()
@flat_options
def play(
    model: Annotated[str, typer.Argument(help=MODELS)],
    artifacts: Annotated[
        list[Path], typer.Argument(help="Folders of replacements, plans or adapters that were fitted on the model.")
    ],
    *,
    question: Annotated[str | None, typer.Option(help="The question to begin with.")] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            help="The instruction of the prompt; by default, in alphabetical order, the first that an artifact was fitted on."
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Strength to begin with, from -1 to 3.")] = 1.0,
    chat: ChatOptions,
    open_page: Annotated[
        bool,
        typer.Option(
            "--open/--no-open",
            help="Whether to open the page in the browser; other users of the machine may then see its address among the processes.",
        ),
    ] = True,
    loading: LoadingOptions,
) -> None:
    """Play with a prompt and its replacements in the browser: answers side by side, live, with a slider for each strength.

    The page is served to this machine alone, at an address with a key. Ctrl-C ends it.
    """
    with one_line_errors():
        from psr_lens._utils.optional import package

        for name in ("starlette", "uvicorn"):
            package(name, "play")
        import psr_lens as psr
        from psr_lens.apps.playground.artifacts import instruction_of, named_folders, python_for, question_for
        from psr_lens.apps.playground.play import session_of
        from psr_lens.apps.playground.server import Server
        from psr_lens.evaluation.config import load_methods

        folders = named_folders(artifacts)
        methods = load_methods({name: str(folder) for name, folder in folders.items()})
        asked = instruction_of(methods) if instruction is None else instruction
        loaded = loading.load(model)
        pairs = psr.prompt_pairs(loaded, [question or question_for(model)], asked, **chat.given)  # type: ignore[arg-type]
        code = f"psr.load_model({model!r})"
        session = session_of(loaded, pairs, methods, alpha=alpha, load_model=code, loads=python_for(folders, methods))
        server = Server(session)
        say(f"{server.address}\nCtrl-C ends it. Whoever has this address and this machine can use the model.")
        if open_page:
            import threading
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        server.run()
