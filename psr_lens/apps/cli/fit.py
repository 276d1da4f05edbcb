"""`psr-lens fit`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psr_lens.apps.cli.common import app, console, one_line_errors
from psr_lens.apps.cli.lines import triplets_of_lines

if TYPE_CHECKING:
    from psr_lens.models import HookedModel
    from psr_lens.prompts import Triplet


@app.command()
def fit(
    triplets: Annotated[
        Path,
        typer.Option(help="The lines that `capture` takes, perhaps with trait and coherence from 0 to 100; or a store's folder."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifact.")],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML of settings, e.g. `solver: joint` and `rank: 2`, or `preset: persona`; A-PSR by default."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="organism, organism-gpt2, a name that TransformerLens knows, or a local folder.")
    ] = "organism",
    group: Annotated[str | None, typer.Option(help="Fit on this group of lines only.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the state of a trained fit (joint, reft_r1, or with `polish`), to resume from after a crash."
        ),
    ] = None,
    scratch: Annotated[
        Path | None,
        typer.Option(help="Folder for the activations of a sequential or local fit, where they are larger than memory."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a response, where the file holds none.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; by default a GPU for each process, if there is one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the responses, where the file holds none.")] = 0,
) -> None:
    """Learn a replacement for an instruction. Also runs under `accelerate launch --module psr_lens.apps.cli fit …` or torchrun."""
    began = time.perf_counter()
    with one_line_errors():
        import psr_lens as psr
        from psr_lens._utils.distributed import own_device, rank_and_world_size
        from psr_lens.fitting.config import read_config

        settings = None if config is None else read_config(config)
        first = rank_and_world_size()[0] == 0
        loaded = psr.load_model(model, device=device or own_device())
        chosen = _of_group(loaded, triplets, group, max_new_tokens, seed)
        learned = psr.fit(loaded, chosen, settings, checkpoint=checkpoint, scratch=scratch)
        if first:
            learned.save(out)
            told = f"{learned}\nfitted on {len(chosen)} triplets → {out}  ({time.perf_counter() - began:.0f} s)"
            console.print(told, highlight=False, markup=False)


def _of_group(model: HookedModel, source: Path, group: str | None, max_new_tokens: int, seed: int) -> Sequence[Triplet]:
    """The triplets of a store or of a file of lines, or those of one group."""
    import psr_lens as psr
    from psr_lens.errors import InputError

    chosen: Sequence[Triplet] = []
    if source.is_dir():
        store = psr.Store.open(source, model, partial=True)
        chosen = [triplet for triplet, of in zip(store.triplets, store.groups, strict=True) if group in (None, of)]
        groups = set(store.groups)
    else:
        read = psr.datasets.read_pairs(source)
        groups = {line.group for line in read}
        if lines := [line for line in read if group in (None, line.group)]:
            asked = psr.prompt_pairs(model, [line.question for line in lines], [line.instruction for line in lines])
            chosen = triplets_of_lines(model, asked, lines, max_new_tokens, seed)
    if group not in (None, *groups):
        raise InputError("group", repr(group), f"one of those in {source}: {', '.join(map(repr, sorted(groups)))}")
    return chosen
