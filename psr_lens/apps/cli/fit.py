"""`psr-lens fit`."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from psr_lens.apps.cli.common import app, one_line_errors, say, say_where
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.apps.cli.option_groups import ChatOptions, LoadingOptions, ModelOption, ResponseOptions

if TYPE_CHECKING:
    from psr_lens.datasets import PairLine
    from psr_lens.models import HookedModel
    from psr_lens.prompts import Triplet


@dataclass(frozen=True)
class SolverOptions:
    """The settings of the fit, and the folders that it may use."""

    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of the fit's settings (solver, layers, rank, …), optionally with `preset: persona`."),
    ] = None
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder for the state of a trained fit (joint, reft_r1, `polish`), to resume it after an interruption."),
    ] = None
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for activations that do not fit into memory (sequential and local fits).")
    ] = None


@app.command()
@flat_options
def fit(
    triplets: Annotated[
        Path,
        typer.Option(
            help="JSON lines as for `psr-lens capture`, optionally with trait and coherence from 0 to 100; or the folder of a store."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the artifact.")],
    *,
    solver: SolverOptions,
    model: ModelOption = "organism",
    group: Annotated[str | None, typer.Option(help="Fit on the lines of this group only.")] = None,
    responses: ResponseOptions,
    chat: ChatOptions,
    loading: LoadingOptions,
) -> None:
    """Fit a replacement for an instruction.

    Runs on several GPUs under `accelerate launch --module psr_lens fit …` or `torchrun -m psr_lens fit …`.
    """
    began = time.perf_counter()
    with one_line_errors():
        import psr_lens as psr
        from psr_lens._utils.distributed import rank_and_world_size
        from psr_lens.activations.store.format import read_spec
        from psr_lens.apps.output_folder import check_folder
        from psr_lens.apps.template_time import kept_time, told_time
        from psr_lens.errors import InputError
        from psr_lens.fitting.fit import check_used_folders
        from psr_lens.fitting.settings.solvers import Sequential, read_config
        from psr_lens.models.config_without_weights import outline_or_none
        from psr_lens.models.hook_points import check_layers

        settings = Sequential() if solver.config is None else read_config(solver.config)
        file = None if triplets.is_dir() else responses.lines(_lines_of_group(triplets, group), chat)
        if file is None:
            if chat.given:
                name, value = next(iter(chat.given.items()))
                raise InputError(name, value, "None with a store, which holds its prompts")
            read_spec(triplets)  # what is missing is said before the model is loaded
        check_used_folders(settings, solver.checkpoint, solver.scratch)
        found = outline_or_none(model)
        if found is not None:
            check_layers(cast(Any, found), settings.layers)
        if file is not None:
            file.check(found)
        check_folder(out)
        first = rank_and_world_size()[0] == 0
        loaded = loading.load(model)
        if file is None:
            chosen = _stored_of_group(loaded, triplets, group)
        else:
            time_told = told_time(loaded) if solver.checkpoint is None else kept_time(loaded, solver.checkpoint)
            asked = file.prompts(loaded, time_told)
            chosen = file.triplets(loaded, asked)
        learned = psr.fit(loaded, chosen, settings, checkpoint=solver.checkpoint, scratch=solver.scratch)
        if first:
            learned.save(out)
            say(f"{learned}\nfitted on {len(chosen)} triplets")
            say_where(out, began)


def _lines_of_group(path: Path, group: str | None) -> Sequence[PairLine]:
    """The lines of a file of JSON lines; only those of the group if one is given."""
    from psr_lens.datasets import read_pairs

    read = read_pairs(path)
    _check_group(group, {line.group for line in read}, path)
    return [line for line in read if group in (None, line.group)]


def _stored_of_group(model: HookedModel, path: Path, group: str | None) -> Sequence[Triplet]:
    """The triplets of a store; only those of the group if one is given."""
    from psr_lens.activations.store import Store

    store = Store.open(path, model, partial=True)
    _check_group(group, set(store.groups), path)
    return [triplet for triplet, of in zip(store.triplets, store.groups, strict=True) if group in (None, of)]


def _check_group(group: str | None, known: Collection[str], path: Path) -> None:
    from psr_lens.errors import InputError

    if group not in (None, *known):
        raise InputError("group", repr(group), f"a group in {path}: {', '.join(map(repr, sorted(known)))}")
