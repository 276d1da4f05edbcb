"""`psr-lens play`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from psr_lens.apps.cli.common import MODELS, DeviceOption, VerifyOption, app, one_line_errors, say


@app.command()
def play(
    model: Annotated[str, typer.Argument(help=MODELS)],
    artifacts: Annotated[
        list[Path], typer.Argument(help="Folders of replacements, plans or adapters that were fitted on the model.")
    ],
    question: Annotated[str, typer.Option(help="The question to begin with.")] = "What is a good way to spend a rainy day?",
    instruction: Annotated[
        str | None, typer.Option(help="The instruction of the prompt; by default the first that the first artifact was fitted on.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Strength to begin with.")] = 1.0,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Whether to open the page in the browser.")] = True,
    verify: VerifyOption = True,
    device: DeviceOption = None,
) -> None:
    """Play with a prompt and its replacements in the browser: answers side by side, live, with a slider for each strength.

    The page is served to this machine alone, at an address with a key. Ctrl-C ends it.
    """
    with one_line_errors():
        from psr_lens._utils.optional import package

        for name in ("starlette", "uvicorn"):
            package(name, "play")
        import psr_lens as psr
        from psr_lens._utils.distributed import own_device
        from psr_lens.apps.playground.artifacts import instruction_of, named_folders, python_for
        from psr_lens.apps.playground.play import session_of
        from psr_lens.apps.playground.server import Server
        from psr_lens.evaluation.config import load_methods

        folders = named_folders(artifacts)
        methods = load_methods({name: str(folder) for name, folder in folders.items()})
        asked = instruction_of(methods) if instruction is None else instruction
        loaded = psr.load_model(model, device=device or own_device(), verify=verify)
        session = session_of(loaded, question, methods, instruction=asked, alpha=alpha, loads=python_for(model, folders, methods))
        server = Server(session)
        say(f"{server.address}\nCtrl-C ends it. Whoever has this address and this machine can use the model.")
        if open_page:
            import webbrowser

            webbrowser.open(server.address)
        server.run()
