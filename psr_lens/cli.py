"""The command line: `psr-lens demo`, `psr-lens capture`, `psr-lens fit`, `psr-lens store info`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from psr_lens.datasets import PairLine
    from psr_lens.demo import DemoResult
    from psr_lens.evaluate import Scores
    from psr_lens.models import HookedModel
    from psr_lens.prompts import PromptPair, Triplet

app = typer.Typer(
    name="psr-lens",
    help="See and replace what a prompt does inside a language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()


store_app = typer.Typer(help="Stores of captured differences.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@app.callback()
def main() -> None:
    """See and replace what a prompt does inside a language model."""


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Our own errors in one line and exit code 2; anything else is a bug and keeps its traceback."""
    from psr_lens.errors import PsrLensError

    try:
        yield
    except PsrLensError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html, results.json and the artifacts.")] = Path("demo"),
    trait: Annotated[list[str] | None, typer.Option(help="Trait of the organism; may be given several times.")] = None,
    model: Annotated[str, typer.Option(help="organism (Llama-like) or organism-gpt2.")] = "organism",
    questions: Annotated[int, typer.Option(help="Held-out questions to score on, at least 100.")] = 120,
    seed: Annotated[int, typer.Option(help="Seed of questions, sampling and fits.")] = 0,
) -> None:
    """Fit replacements for an instruction on the shipped model, compare them with the prompt, and write a report."""
    began = time.perf_counter()
    with _one_line_errors(), console.status("loading torch and TransformerLens") as status:
        from psr_lens.demo import DemoConfig, run_demo

        config = DemoConfig(model=model, held_out_questions=questions, seed=seed)
        results = run_demo(out, trait or ["pirate"], config, say=status.update)
    console.print(_table(results))
    console.print(f"[bold]{out / 'report.html'}[/]  ({time.perf_counter() - began:.0f} s)")


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
    """Capture what instructions change, onto the disk. Also under `accelerate launch --module psr_lens.cli capture …` or torchrun."""
    with _one_line_errors():
        import psr_lens as psr
        from psr_lens.launch import own_device, rank_and_world_size

        first = rank_and_world_size()[0] == 0
        lines = psr.datasets.read_pairs(pairs)
        loaded = psr.load_model(model, device=device or own_device())
        asked = psr.prompt_pairs(loaded, [line.question for line in lines], [line.instruction for line in lines])
        given = lines[0].response is not None
        source: dict[str, object] = {"responses": "given" if given else {"max_new_tokens": max_new_tokens, "seed": seed}}
        triplets = (None if given else _begun(out, asked, source)) or _triplets(loaded, asked, lines, max_new_tokens, seed, first)
        store = psr.capture(
            loaded,
            triplets,
            hooks or ["resid_post"],
            to=psr.OnDisk(out, cast(Any, dtype), _groups(triplets, asked, lines), shard_mb * 10**6, source),
            layers=layer,
            span=cast(Any, span),
            difference=cast(Any, difference),
            token_budget=token_budget,
            progress=first,
        )
        if first:
            console.print(str(store.summary()), highlight=False, markup=False)


def _triplets(
    model: HookedModel, asked: Sequence[PromptPair], lines: Sequence[PairLine], max_new_tokens: int, seed: int, progress: bool
) -> Sequence[Triplet]:
    """The file's own responses with their scores, or new ones."""
    import psr_lens as psr

    if lines[0].response is None:
        config = psr.SamplingConfig(max_new_tokens=max_new_tokens, seed=seed)
        return psr.sample_responses(model, asked, config=config, progress=progress)
    triplets = psr.with_responses(model, asked, [str(line.response) for line in lines])
    return [replace(triplet, trait=line.trait, coherence=line.coherence) for triplet, line in zip(triplets, lines, strict=True)]


def _begun(out: Path, asked: Sequence[PromptPair], source: Mapping[str, object]) -> Sequence[Triplet] | None:
    """The responses that were sampled before a capture was cut off, so that it need not sample them again."""
    from psr_lens.errors import ArtifactError
    from psr_lens.store import Store

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


@app.command()
def fit(
    triplets: Annotated[
        Path,
        typer.Option(help="The lines that `capture` takes, perhaps with trait and coherence from 0 to 1; or a store's folder."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifact.")],
    config: Annotated[Path | None, typer.Option(help="YAML of settings (see `FitConfig`), perhaps `preset: persona`.")] = None,
    model: Annotated[
        str, typer.Option(help="organism, organism-gpt2, a name that TransformerLens knows, or a local folder.")
    ] = "organism",
    group: Annotated[str | None, typer.Option(help="Fit on the lines of this group only.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder for the state of a joint fit, to go on from after a crash.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response, where the file holds none.")] = 64,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; a GPU of its own for every process if there is one.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the responses, where the file holds none.")] = 0,
) -> None:
    """Learn a replacement for an instruction. Also under `accelerate launch --module psr_lens.cli fit …` or torchrun."""
    began = time.perf_counter()
    with _one_line_errors():
        import psr_lens as psr
        from psr_lens.fit.config import read_config
        from psr_lens.launch import own_device, rank_and_world_size

        settings = psr.FitConfig() if config is None else read_config(config)
        first = rank_and_world_size()[0] == 0
        loaded = psr.load_model(model, device=device or own_device())
        chosen = _of_group(loaded, triplets, group, max_new_tokens, seed, first)
        learned = psr.fit(loaded, chosen, settings, checkpoint=checkpoint, progress=first)
        if first:
            learned.save(out)
            told = f"{learned}\nfitted on {len(chosen)} triplets → {out}  ({time.perf_counter() - began:.0f} s)"
            console.print(told, highlight=False, markup=False)


def _of_group(
    model: HookedModel, source: Path, group: str | None, max_new_tokens: int, seed: int, progress: bool
) -> Sequence[Triplet]:
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
            chosen = _triplets(model, asked, lines, max_new_tokens, seed, progress)
    if group not in (None, *groups):
        raise InputError("group", repr(group), f"one of those in {source}: {', '.join(map(repr, sorted(groups)))}")
    return chosen


@store_app.command()
def info(
    folder: Annotated[Path, typer.Argument(help="Folder of the store.")],
    verify: Annotated[bool, typer.Option("--verify", help="Read everything and check every checksum.")] = False,
) -> None:
    """Say what a store holds, finished or not."""
    with _one_line_errors():
        from psr_lens.store import Store

        store = Store.open(folder, partial=True)
        console.print(str(store.summary()), highlight=False, markup=False)
        if verify:
            Store.open(folder).verify()
            console.print("every checksum is right")


def _table(results: dict[str, DemoResult]) -> Table:
    table = Table(title="Answers to held-out questions, mean score 0–100 with 95 % bootstrap interval")
    for heading in ("trait", "method", "alpha"):
        table.add_column(heading)
    for heading in ("trait score", "coherence", "n", "relative RMSE, last layer"):
        table.add_column(heading, justify="right")
    for trait, result in results.items():
        for place, scores in enumerate(result.comparison.scores):
            table.add_row(trait if place == 0 else "", *_row(scores, result))
        if result.comparison.paraphrase_rmse is not None:
            table.add_row("", "paraphrase", "", "", "", "", f"{float(result.comparison.paraphrase_rmse[-1]):.2f}")
        table.add_section()
    return table


def _row(scores: Scores, result: DemoResult) -> list[str]:
    def score(mean: float, interval: tuple[float, float]) -> str:
        return f"{mean:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"

    trace = result.comparison.methods.get(scores.method)
    return [
        scores.method,
        "" if scores.alpha is None else f"{scores.alpha:g}",
        score(scores.trait, scores.trait_interval),
        score(scores.coherence, scores.coherence_interval),
        str(scores.n),
        "" if trace is None else f"{float(trace.relative_rmse[-1]):.2f}",
    ]
