"""`psr-lens capture`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from psr_lens.apps.cli.common import app, console, one_line_errors
from psr_lens.apps.cli.lines import triplets_of_lines

if TYPE_CHECKING:
    from psr_lens.datasets import PairLine
    from psr_lens.prompts import PromptPair, Triplet


@app.command()
def capture(
    pairs: Annotated[Path, typer.Option(help='JSON lines: {"question": …, "instruction": …}, perhaps "response" and "group".')],
    out: Annotated[Path, typer.Option(help="Folder of the store. An unfinished capture in it is resumed.")],
    model: Annotated[
        str, typer.Option(help="organism, organism-gpt2, a name that TransformerLens knows, or a local folder.")
    ] = "organism",
    hooks: Annotated[list[str] | None, typer.Option(help="all, a kind, a name or a glob; may be given several times.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Only this layer; may be given several times.")] = None,
    span: Annotated[str, typer.Option(help="R (the response) or QR (the question too).")] = "R",
    difference: Annotated[str, typer.Option(help="accumulated or local.")] = "accumulated",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; the model's own if left out.")] = None,
    token_budget: Annotated[int, typer.Option(help="Most tokens in a batch, padding included.")] = 8_192,
    shard_mb: Annotated[int, typer.Option(help="Most megabytes of a shard.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response, where the file holds none.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; a GPU of its own for every process if there is one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the responses, where the file holds none.")] = 0,
) -> None:
    """Capture what instructions change, onto the disk. Also under `accelerate launch --module psr_lens.apps.cli capture …` or torchrun."""
    with one_line_errors():
        import psr_lens as psr
        from psr_lens._utils.distributed import own_device, rank_and_world_size

        first = rank_and_world_size()[0] == 0
        lines = psr.datasets.read_pairs(pairs)
        loaded = psr.load_model(model, device=device or own_device())
        asked = psr.prompt_pairs(loaded, [line.question for line in lines], [line.instruction for line in lines])
        given = lines[0].response is not None
        source: dict[str, object] = {"responses": "given" if given else {"max_new_tokens": max_new_tokens, "seed": seed}}
        triplets = (None if given else _begun(out, asked, source)) or triplets_of_lines(loaded, asked, lines, max_new_tokens, seed)
        store = psr.capture(
            loaded,
            triplets,
            hooks or ["resid_post"],
            to=psr.OnDisk(out, cast(Any, dtype), _groups(triplets, asked, lines), shard_mb * 10**6, source),
            layers=layer,
            span=cast(Any, span),
            difference=cast(Any, difference),
            token_budget=token_budget,
        )
        if first:
            console.print(str(store.summary()), highlight=False, markup=False)


def _begun(out: Path, asked: Sequence[PromptPair], source: Mapping[str, object]) -> Sequence[Triplet] | None:
    """The responses that were sampled before a capture was cut off, so that it need not sample them again."""
    from psr_lens.activations.store import Store
    from psr_lens.errors import ArtifactError

    try:
        store = Store.open(out, partial=True)
    except ArtifactError:
        return None  # none there yet; or a damaged one, about which the capture will complain
    same = store.spec.settings.get("responses") == source["responses"] and {each.pair for each in store.triplets} <= set(asked)
    return store.triplets if same else None


def _groups(triplets: Sequence[Triplet], asked: Sequence[PromptPair], lines: Sequence[PairLine]) -> list[str]:
    """The group of every triplet; they come in the order of the lines, but some lines may have none (an empty response)."""
    left = iter(zip(asked, lines, strict=True))
    return [next(line.group for pair, line in left if pair == triplet.pair) for triplet in triplets]
