"""`psr-lens transfer`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from psr_lens.apps.cli.common import app, one_line_errors, say, say_where
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.apps.cli.option_groups import MODELS, ChatOptions, LoadingOptions, ResponseOptions


@dataclass(frozen=True)
class ModelsOptions:
    """The two models."""

    source_model: Annotated[str, typer.Option(help=f"The model that it was made for: {MODELS}")]
    target_model: Annotated[str, typer.Option(help="The model to be steered, named alike.")]


@dataclass(frozen=True)
class RungOptions:
    """How much is carried over, and by which map."""

    rung: Annotated[
        list[str] | None,
        typer.Option(
            help="How much is carried over: through-text, gates, gates-through-text, whole-ridge, whole-procrustes or "
            "whole-anchors; repeatable. Default: gates."
        ),
    ] = None
    map_folder: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="Folder of a map of these models, such as `map` in the folder of another transfer. Default: one is learned from the "
            "source's answers to the same questions without the instruction.",
        ),
    ] = None


@app.command()
@flat_options
def transfer(
    artifact: Annotated[Path, typer.Option("--from", help="Folder of the source's replacement, as `psr-lens fit` writes it.")],
    models: ModelsOptions,
    texts: Annotated[
        Path,
        typer.Option(help="JSON lines as for `psr-lens fit`; the responses are the source's, which gives them if there are none."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the map and a folder for each rung; an interrupted transfer is resumed.")],
    rungs: RungOptions,
    responses: ResponseOptions,
    chat: ChatOptions,
    loading: LoadingOptions,
) -> None:
    """Carry a replacement over to another model, of any family and tokenizer.

    What is finished in the folder is not made again.
    """
    began = time.perf_counter()
    with one_line_errors():
        import psr_lens as psr
        from psr_lens._utils.digests import digest_of
        from psr_lens.apps.output_folder import check_folder
        from psr_lens.apps.template_time import kept_time
        from psr_lens.apps.transfer import RUNGS, Transfer
        from psr_lens.errors import InputError
        from psr_lens.transfer.map_files import read_map

        chosen = list(dict.fromkeys(rungs.rung or ["gates"]))
        if unknown := [name for name in chosen if name not in RUNGS]:
            raise InputError("rung", repr(unknown[0]), f"one of {', '.join(RUNGS)}")
        check_folder(out)
        file = responses.lines(psr.datasets.read_pairs(texts), chat)
        replacement = psr.Replacement.load(artifact)
        if rungs.map_folder is not None:
            read_map(rungs.map_folder)  # what is missing is said before models are loaded
        source, target = loading.load(models.source_model), loading.load(models.target_model)
        mapped = None
        if rungs.map_folder is not None:
            mapped = psr.transfer.ActivationMap.load(rungs.map_folder, source=source, target=target)

        def sampled() -> list[psr.Triplet]:
            return list(file.triplets(source, file.prompts(source, kept_time(source, out))))

        made = Transfer(source, target, replacement, out, sampled, file.sampling, say, mapped)
        given = {"lines": digest_of([vars(line) for line in file.lines]), **vars(responses)}
        made.claim({**given, **({"chat": dict(file.chat)} if file.chat else {})})
        for name in chosen:
            made.carried(name)
    say_where(out, began)
