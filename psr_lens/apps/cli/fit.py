"""`psr-lens fit`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psr_lens.apps.cli.common import (
    DeviceOption,
    MaxNewTokensOption,
    ModelOption,
    SeedOption,
    VerifyOption,
    app,
    one_line_errors,
    say,
    say_where,
)
from psr_lens.apps.triplets import triplets_of_lines

if TYPE_CHECKING:
    from psr_lens.models import HookedModel
    from psr_lens.prompts import Triplet


@app.command()
def fit(  # noqa: PLR0913  (a command: each parameter is an option)
    triplets: Annotated[
        Path,
        typer.Option(
            help="JSON lines as for `psr-lens capture`, optionally with trait and coherence from 0 to 100; or the folder of a store."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the artifact.")],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of the fit's settings (solver, layers, rank, …), optionally with `preset: persona`."),
    ] = None,
    model: ModelOption = "organism",
    group: Annotated[str | None, typer.Option(help="Fit on the lines of this group only.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder for the state of a trained fit (joint, reft_r1, `polish`), to resume it after an interruption."),
    ] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for activations that do not fit into memory (sequential and local fits).")
    ] = None,
    max_new_tokens: MaxNewTokensOption = 64,
    verify: VerifyOption = True,
    device: DeviceOption = None,
    seed: SeedOption = 0,
) -> None:
    """Fit a replacement for an instruction.

    Runs on several GPUs under `accelerate launch --module psr_lens fit …` or `torchrun -m psr_lens fit …`.
    """
    began = time.perf_counter()
    with one_line_errors():
        import psr_lens as psr
        from psr_lens._utils.distributed import own_device, rank_and_world_size
        from psr_lens.fitting.settings.solvers import read_config

        settings = None if config is None else read_config(config)
        first = rank_and_world_size()[0] == 0
        loaded = psr.load_model(model, device=device or own_device(), verify=verify)
        chosen = _of_group(loaded, triplets, group, max_new_tokens, seed)
        learned = psr.fit(loaded, chosen, settings, checkpoint=checkpoint, scratch=scratch)
        if first:
            learned.save(out)
            say(f"{learned}\nfitted on {len(chosen)} triplets")
            say_where(out, began)


def _of_group(model: HookedModel, source: Path, group: str | None, max_new_tokens: int, seed: int) -> Sequence[Triplet]:
    """The triplets of a store or a file of JSON lines; only those of the group if one is given."""
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
        raise InputError("group", repr(group), f"a group in {source}: {', '.join(map(repr, sorted(groups)))}")
    return chosen
