"""`psr-lens capture`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from psr_lens.apps.cli.common import app, one_line_errors, say
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.apps.cli.option_groups import DTYPES, ChatOptions, LoadingOptions, ModelOption, ResponseOptions
from psr_lens.apps.triplets import Lines

if TYPE_CHECKING:
    from psr_lens.activations.store import Store
    from psr_lens.datasets import PairLine
    from psr_lens.prompts import PromptPair, Triplet


@dataclass(frozen=True)
class DifferenceOptions:
    """Which differences are captured, and in which batches."""

    hooks: Annotated[
        list[str] | None,
        typer.Option(
            help="Hook points: all, a kind such as resid_post or z, a full name, or a glob; repeatable. Default: resid_post."
        ),
    ] = None
    layer: Annotated[list[int] | None, typer.Option(help="Only this layer; repeatable.")] = None
    span: Annotated[str, typer.Option(help="R (the response) or QR (the question as well).")] = "R"
    difference: Annotated[
        str,
        typer.Option(help="accumulated (all that the instruction has changed up to a hook point) or local (what one block adds)."),
    ] = "accumulated"
    token_budget: Annotated[int, typer.Option(help="Maximum number of tokens in a batch, padding included.")] = 8_192


@dataclass(frozen=True)
class DiskOptions:
    """How differences lie on disk."""

    dtype: Annotated[str | None, typer.Option(help=f"Type on disk: {DTYPES}; by default the model's own.")] = None
    shard_mb: Annotated[int, typer.Option(help="Maximum size of a shard in megabytes.")] = 256


@app.command()
@flat_options
def capture(
    pairs: Annotated[
        Path,
        typer.Option(help='JSON lines {"question": …, "instruction": …}, optionally with "response" and "group".'),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the store; an unfinished capture in it is resumed.")],
    *,
    model: ModelOption = "organism",
    differences: DifferenceOptions,
    disk: DiskOptions,
    responses: ResponseOptions,
    chat: ChatOptions,
    loading: LoadingOptions,
) -> None:
    """Capture the activation differences that instructions make, and store them on disk.

    Runs on several GPUs under `accelerate launch --module psr_lens capture …` or `torchrun -m psr_lens capture …`.
    """
    with one_line_errors():
        import psr_lens as psr
        from psr_lens._utils.distributed import rank_and_world_size
        from psr_lens.apps.output_folder import check_folder
        from psr_lens.apps.template_time import told_time

        first = rank_and_world_size()[0] == 0
        hooks = differences.hooks or ["resid_post"]
        file = responses.lines(psr.datasets.read_pairs(pairs), chat)
        _check_settings(differences, disk)
        _check_with_config(model, file, hooks, differences.layer)
        check_folder(out)
        loaded = loading.load(model)
        begun = _begun(out)
        asked = file.prompts(loaded, told_time(loaded, _time(begun)))
        given = file.lines[0].response is not None
        source: dict[str, object] = {"responses": "given" if given else asdict(responses)}
        triplets = (None if given else _sampled(begun, asked, source)) or file.triplets(loaded, asked)
        store = psr.capture(
            loaded,
            triplets,
            hooks,
            to=psr.OnDisk(out, cast(Any, disk.dtype), _groups(triplets, asked, file.lines), disk.shard_mb * 10**6, source),
            layers=differences.layer,
            span=cast(Any, differences.span),
            difference=cast(Any, differences.difference),
            token_budget=differences.token_budget,
        )
        if first:
            say(str(store.summary()))


def _check_settings(differences: DifferenceOptions, disk: DiskOptions) -> None:
    """Refuse what `capture` and its store would refuse, before weights are read."""
    from psr_lens._utils.arguments import check
    from psr_lens.activations.paired_passes import Difference
    from psr_lens.activations.store.format import StoreDtype
    from psr_lens.errors import InputError
    from psr_lens.prompts import Span

    given: list[tuple[str, Any, Any]] = [("span", differences.span, Span), ("difference", differences.difference, Difference)]
    for name, value, hint in [*given, ("dtype", disk.dtype, StoreDtype | None)]:
        check(value, hint, name)
    for name, number in (("token_budget", differences.token_budget), ("shard_mb", disk.shard_mb)):
        if number < 1:
            raise InputError(name, number, "at least 1")


def _check_with_config(model: str, file: Lines, hooks: Sequence[str], layers: Sequence[int] | None) -> None:
    """Refuse lines, hook points and layers that the model cannot have, going by its config and tokenizer."""
    from psr_lens.models.config_without_weights import outline_or_none
    from psr_lens.models.hook_points import check_hook_names, check_layers

    found = outline_or_none(model)
    file.check(found)
    check_hook_names(hooks, None if found is None else found.cfg.n_layers)
    if found is not None and layers is not None:
        check_layers(cast(Any, found), layers)


def _begun(out: Path) -> Store | None:
    """The store that an interrupted capture has begun."""
    from psr_lens.activations.store import Store
    from psr_lens.errors import ArtifactError

    try:
        return Store.open(out, partial=True)
    except ArtifactError:
        return None  # no store yet; or a damaged one, which the capture will report


def _time(store: Store | None) -> str | None:
    """The time that the chat template was told in prompts of the store."""
    from psr_lens.prompts.chat_templates import NOW

    return None if store is None or not store.triplets else store.triplets[0].pair.chat.variables.get(NOW)


def _sampled(store: Store | None, asked: Sequence[PromptPair], source: Mapping[str, object]) -> Sequence[Triplet] | None:
    """The responses that were sampled already; None if there are none, or for other prompts or sampling."""
    if store is None:
        return None
    same = store.spec.settings.get("responses") == source["responses"] and {each.pair for each in store.triplets} <= set(asked)
    return store.triplets if same else None


def _groups(triplets: Sequence[Triplet], asked: Sequence[PromptPair], lines: Sequence[PairLine]) -> list[str]:
    """The group of each triplet. Triplets are in the order of the lines, but a line with an empty response has none."""
    left = iter(zip(asked, lines, strict=True))
    return [next(line.group for pair, line in left if pair == triplet.pair) for triplet in triplets]
