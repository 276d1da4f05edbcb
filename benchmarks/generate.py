"""Tokens a second of `psr.generate` against transformers' own `generate`, and the time to read both contexts against two bare forwards.

python benchmarks/generate.py                        # a random model of GPT-2 small's size; about half an hour on 2 cores
python benchmarks/generate.py --model FOLDER_OR_GGUF # that model, too
python benchmarks/generate.py --only FOLDER_OR_GGUF  # that model alone
python benchmarks/generate.py --quick                # fewer tokens and turns; the numbers are not to be quoted
python benchmarks/generate.py --json out.json
python benchmarks/generate.py --tables-of benchmarks/generate   # the tables of files that --json wrote, in Markdown

Everything takes turns in one process, so that a busy machine slows all of it, and a ratio is the median over the turns. Transformers'
model is loaded by itself, as transformers loads it by default. All that is compared makes as many tokens from the same prompts.
"""

from __future__ import annotations

import importlib.metadata
import json
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import torch
import typer
from _models import GPT2_SMALL, a_psr, in_turns, machine, random_gpt2_folder, random_triplets
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

import psr_lens as psr
from psr_lens._utils.sequences import padded
from psr_lens.activations.batches import context_batch, length_batches
from psr_lens.activations.paired_passes import TOKEN_BUDGET
from psr_lens.models import HookedModel, device_of, forward, has_hooked_transformer
from psr_lens.prompts import PromptPair, Triplet

CASES: Final = ((1, 0), (4, 1))
"""Batch size and temperature. A step of a single response is the fastest, so whatever is not the model weighs most there."""
RANK: Final = 4
ALPHA: Final = 0.1
"""Small: what is steered stays ordinary text. A hook costs the same at any strength but 0."""
WANTED: Final = {"unsteered": 0.95, "steered": 0.93, "capture": 1.10}
"""Least ratio of tokens a second, and largest of times."""
SEED: Final = 0


class Size(NamedTuple):
    """How much is measured."""

    new: int
    """New tokens of each response."""
    turns: int
    triplets: int


FULL: Final = Size(64, 11, 4)
QUICK: Final = Size(8, 2, 2)


@dataclass(frozen=True)
class Loaded:
    """One model in all the classes that are compared."""

    name: str
    plain: Any
    """Transformers' own, which shares nothing with the others."""
    by_class: dict[str, HookedModel]


def load(source: Path, classes: Iterable[str]) -> Loaded:
    """Load a folder or a `.gguf` file."""
    where = (source.parent, {"gguf_file": source.name}) if source.suffix == ".gguf" else (source, {})
    plain = AutoModelForCausalLM.from_pretrained(where[0], dtype=torch.float32, **where[1]).eval()
    # Transformers warns where its own settings contradict greedy decoding.
    plain.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    by_class = {}
    for each in classes:
        model = psr.load_model(source, device="cpu", backend=each)  # type: ignore[arg-type]
        if model.tokenizer is None:
            model.tokenizer = psr.load_model("organism-gpt2").tokenizer  # which text an id has costs nothing
        by_class[type(model).__name__] = model
    return Loaded(source.stem, plain, by_class)


def random_pairs(vocabulary: int, count: int) -> list[PromptPair]:
    """Prompts of 20 to 60 random tokens."""
    draw = random.Random(SEED)
    ids = [tuple(draw.randrange(10, vocabulary) for _ in range(draw.randint(20, 60))) for _ in range(count)]
    return [PromptPair("", "", each, each, len(each)) for each in ids]


def cost_of_generation(loaded: Loaded, batch: int, temperature: float, size: Size) -> list[dict[str, Any]]:
    """`psr.generate`, steered and not, with each class, against transformers' `generate`."""
    pairs = random_pairs(int(loaded.plain.config.get_text_config().vocab_size), batch)
    tokens, mask = padded([pair.base_ids for pair in pairs], "left")
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
    exactly = {"min_new_tokens": size.new, "max_new_tokens": size.new}
    config = psr.SamplingConfig(temperature=temperature, seed=SEED, token_budget=10**6, **exactly)  # type: ignore[arg-type]

    def by_transformers() -> list[tuple[int, ...]]:
        torch.manual_seed(SEED)
        found = loaded.plain.generate(tokens, attention_mask=mask, pad_token_id=0, **exactly, **sampling)
        return [tuple(row) for row in found[:, tokens.shape[1] :].tolist()]

    def by_psr(model: HookedModel, steered: bool) -> Callable[[], list[tuple[int, ...]]]:
        steering = a_psr(model, RANK) if steered else None
        return lambda: [each.ids for each in psr.generate(model, pairs, steering, alpha=ALPHA, sampling=config)]

    jobs: dict[str, Callable[[], list[tuple[int, ...]]]] = {"transformers": by_transformers}
    for kind, model in loaded.by_class.items():
        jobs |= {f"{kind} unsteered": by_psr(model, False), f"{kind} steered": by_psr(model, True)}
    checked = {name: checks(name, job, size.new) for name, job in jobs.items()}
    if not temperature:
        wanted = by_transformers()
        checked |= {name: checks(name, jobs[name], size.new, wanted) for name in jobs if name.endswith("unsteered")}
    times = in_turns(checked, size.turns, f"{loaded.name}, batch {batch}, temperature {temperature:g}")
    rows = []
    for name in list(jobs)[1:]:
        kind, what = name.split()
        row = {
            "model": loaded.name,
            "class": kind,
            "what": what,
            "batch": batch,
            "temperature": temperature,
            "new tokens": size.new,
        }
        found, other = times[name], times["transformers"]
        row |= {"tokens a second": batch * size.new / statistics.median(found.wall)}
        row |= {"transformers' tokens a second": batch * size.new / statistics.median(other.wall)}
        rows.append(row | compared(other.wall, found.wall, other.cpu, found.cpu) | {"wanted": WANTED[what]})
    return rows


def checks(
    name: str, job: Callable[[], list[tuple[int, ...]]], new: int, wanted: list[tuple[int, ...]] | None = None
) -> Callable[[], None]:
    """The job, whose responses have to have the right number of tokens, and, if it is greedy and unsteered, transformers' tokens."""

    def run() -> None:
        found = job()
        if not all(len(ids) == new for ids in found):
            raise RuntimeError(f"{name} made other numbers of tokens than {new}")
        if wanted is not None and found != wanted:
            raise RuntimeError(f"{name} made other tokens than transformers")

    return run


def cost_of_capture(loaded: Loaded, size: Size) -> list[dict[str, Any]]:
    """`psr.capture` of the residual stream after every layer, both contexts, against bare forward passes of the same batches."""
    triplets = random_triplets(int(loaded.plain.config.get_text_config().vocab_size), size.triplets)
    rows = []
    for kind, model in loaded.by_class.items():
        bare = bare_forwards(model, triplets)
        jobs = {"bare": bare, "captured": lambda model=model: psr.capture(model, triplets, ["resid_post"])}
        times = in_turns(jobs, size.turns, f"{loaded.name}, {kind}, capture")
        row = {"model": loaded.name, "class": kind, "what": "capture", "triplets": size.triplets}
        row |= {"seconds": statistics.median(times["captured"].wall), "bare seconds": statistics.median(times["bare"].wall)}
        found = (times["captured"].wall, times["bare"].wall, times["captured"].cpu, times["bare"].cpu)
        rows.append(row | compared(*found) | {"wanted": WANTED["capture"]})
    return rows


def bare_forwards(model: HookedModel, triplets: Sequence[Triplet]) -> Callable[[], None]:
    """Forward passes of the batches that `capture` reads."""
    batches = [[triplets[index] for index in indices] for indices in length_batches(triplets, TOKEN_BUDGET)]
    contexts = [context_batch(batch, context, "R", device_of(model)) for batch in batches for context in ("base", "prompted")]

    def run() -> None:
        with torch.no_grad():
            for batch in contexts:
                forward(model, batch.tokens, batch.mask)

    return run


def compared(above: list[float], below: list[float], cpu_above: list[float], cpu_below: list[float]) -> dict[str, Any]:
    """The median over the turns of a ratio of times, its interval, and the median of that of CPU times."""
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    cpu = [one / other for one, other in zip(cpu_above, cpu_below, strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "interval": interval_of_median(ratios),
        "ratio of CPU time": statistics.median(cpu),
        "interval of CPU time": interval_of_median(cpu),
        "turns": len(ratios),
    }


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the median, seed 0."""
    draw = random.Random(SEED)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(2_000))
    return medians[49], medians[-50]


def is_reached(row: dict[str, Any]) -> bool:
    """Whether the ratio is as wanted, in CPU time, which depends least on what else a machine does."""
    ratio = row["ratio of CPU time"]
    return bool(ratio <= row["wanted"]) if row["what"] == "capture" else bool(ratio >= row["wanted"])


# --- tables -----------------------------------------------------------------------------------------------------------------

GENERATION: Final = (
    *("model", "class", "batch", "temperature", "", "tokens / s", "transformers'", "ratio (95 %)", "of CPU time", "wanted"),
)
CAPTURE: Final = ("model", "class", "seconds", "two bare forwards", "ratio (95 %)", "of CPU time", "wanted")


def lines_of(rows: Iterable[dict[str, Any]], capture: bool) -> list[list[str]]:
    """The cells of the table of generation or of that of capture."""
    lines = []
    for row in rows:
        if (row["what"] == "capture") != capture:
            continue
        both = []
        for key, interval in (("ratio", "interval"), ("ratio of CPU time", "interval of CPU time")):
            both.append(f"{row[key]:.2f} ({row[interval][0]:.2f}–{row[interval][1]:.2f})")
        if capture:
            middle = [f"{row['seconds']:.2f}", f"{row['bare seconds']:.2f}"]
            lines.append([row["model"], row["class"], *middle, *both, f"≤ {row['wanted']:.2f}"])
            continue
        speeds = [f"{row[key]:.1f}" for key in ("tokens a second", "transformers' tokens a second")]
        given = [row["model"], row["class"], str(row["batch"]), f"{row['temperature']:g}", row["what"]]
        lines.append([*given, *speeds, *both, f"≥ {row['wanted']:.2f}"])
    return lines


def print_markdown(paths: Sequence[Path]) -> None:
    """The tables of files that --json wrote."""
    for path in paths:
        found = json.loads(path.read_text())
        print(f"\n**{found['machine']}, {found['versions']}**")
        for headings, capture in ((GENERATION, False), (CAPTURE, True)):
            lines = lines_of(found["rows"], capture)
            if lines:
                print(f"\n| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
                print("\n".join(f"| {' | '.join(line)} |" for line in lines))


def versions() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformer-lens", "transformers"))


def main(
    model: Annotated[Path | None, typer.Option(help="A folder or a .gguf file to measure too.")] = None,
    only: Annotated[Path | None, typer.Option(help="The same, but this model alone.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer tokens and turns; a look, not a measurement.")] = False,
    turns: Annotated[int | None, typer.Option(min=1, help="Times that everything is measured.")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; those that torch itself chooses if left out.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    tables_of: Annotated[
        Path | None, typer.Option(help="Print the tables of such files in this folder, and measure nothing.")
    ] = None,
) -> None:
    """Run the benchmark and print its tables."""
    if tables_of:
        print_markdown(sorted(tables_of.glob("*.json")))
        return
    size = (QUICK if quick else FULL)._replace(**{} if turns is None else {"turns": turns})
    if threads:
        torch.set_num_threads(threads)
    classes = ["hooked_transformer", "bridge"] if has_hooked_transformer() else ["bridge"]
    rows = []
    with nullcontext() if only else random_gpt2_folder(GPT2_SMALL) as folder:
        for source in filter(None, (folder, model, only)):
            loaded = load(source, classes)
            rows += [row for batch, temperature in CASES for row in cost_of_generation(loaded, batch, temperature, size)]
            rows += cost_of_capture(loaded, size)
    on = machine()
    for title, headings, capture in (("Generation", GENERATION, False), ("Capture of resid_post", CAPTURE, True)):
        table = Table(*headings, title=f"{title} ({on}, {versions()})")
        for line in lines_of(rows, capture):
            table.add_row(*line)
        Console(width=160).print(table)
    for row in rows:
        if not is_reached(row):
            print(f"not as wanted: {row}")
    if json_file:
        found = {"format": 1, "seed": SEED, "machine": on, "versions": versions(), "rank": RANK, "rows": rows}
        json_file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
