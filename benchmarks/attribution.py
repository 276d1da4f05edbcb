"""Whether the heads that `attribute` names are the ones that carry the instruction: knock-out on the embedded models.

python benchmarks/attribution.py                    # nine traits, both families; a quarter of an hour on one core
python benchmarks/attribution.py --trait pirate --model organism --json out.json

Heads are named on answers to training questions: those whose reading of the instruction has the largest share of Δ after their own layer
(`attribute(…).top_heads(k)`). Held-out questions are then asked under the prompt, with the instruction hidden from these heads, and from k
others drawn at random, several draws. `--target -1` names them by their share of Δ after the last layer instead, which finds those that
write to it themselves, and misses early ones whose reading others pass on.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import psr_lens as psr
from psr_lens import organism
from psr_lens.evaluation.scores import Scores, scores_at
from psr_lens.interpretation.patching import knock_out

COUNTS = (1, 4, 8)
DRAWS = 3
NAMED_ON, ASKED = 60, 40


@dataclass(frozen=True)
class Row:
    """One trait of one model, with some number of heads knocked out."""

    model: str
    trait: str
    count: int
    """Heads knocked out."""
    heads: tuple[str, ...]
    """The heads that `attribute` names."""
    prompt: float
    """Trait under the prompt, 0–100."""
    named: float
    """Trait with the named heads knocked out."""
    named_interval: tuple[float, float]
    """95 % bootstrap interval over questions."""
    named_coherence: float
    """Coherence with the named heads knocked out."""
    others: tuple[float, ...]
    """Trait with as many other heads knocked out, one number a draw."""
    questions: int
    """Questions asked."""
    attribute_seconds: float
    """Wall time of `attribute` on 60 answers."""


def rows_of(name: str, trait: str, target: int | None) -> list[Row]:
    """Name heads, knock them and others out, score."""
    model, judge = psr.load_model(name), psr.judges.organism(trait)
    instruction = organism.INSTRUCTIONS[trait][0]
    asked = psr.prompt_pairs(model, organism.questions(NAMED_ON, seed=1), instruction)
    triplets = psr.sample_responses(model, asked, judge)
    began = time.perf_counter()
    result = psr.attribute(model, triplets, target=target)
    seconds = time.perf_counter() - began
    pairs = psr.prompt_pairs(model, organism.questions(ASKED, split="held_out"), instruction)

    def score(heads: Any) -> Scores:
        with knock_out(model, pairs, heads):
            return scores_at(model, pairs, None, judge, context="prompted")

    prompt, rng = scores_at(model, pairs, None, judge, context="prompted").trait, random.Random(0)
    every = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    rows = []
    for count in COUNTS:
        top = result.top_heads(count)
        left = [head for head in every if head not in {(each.layer, each.head) for each in top}]
        named = score(top)
        others = tuple(score(rng.sample(left, count)).trait for _ in range(DRAWS))
        rows.append(
            Row(
                name,
                trait,
                count,
                tuple(map(str, top)),
                prompt,
                named.trait,
                named.trait_interval,
                named.coherence,
                others,
                len(pairs),
                seconds,
            )
        )
    return rows


def table(rows: list[Row]) -> Table:
    """As a table."""
    shown = Table(title=f"Trait with heads knocked out, of {ASKED} held-out questions; others: {DRAWS} draws")
    for column in ("model", "trait", "heads", "prompt", "named: trait [95 %] / coherence", "others, by draw"):
        shown.add_column(column)
    for row in rows:
        low, high = row.named_interval
        shown.add_row(
            row.model,
            row.trait,
            " ".join(row.heads),
            f"{row.prompt:.0f}",
            f"{row.named:.0f} [{low:.0f}, {high:.0f}] / {row.named_coherence:.0f}",
            " ".join(f"{value:.0f}" for value in row.others),
        )
    return shown


def main(
    model: Annotated[list[str] | None, typer.Option(help="A family; several times for several.")] = None,
    trait: Annotated[list[str] | None, typer.Option(help="A trait; several times for several.")] = None,
    target: Annotated[int | None, typer.Option(help="Name heads by their share of Δ after this layer.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")] = None,
) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in model or ("organism", "organism-gpt2"):
        for each in trait or organism.TRAITS:
            rows += rows_of(name, each, target)
            if json_file is not None:
                json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    Console(width=150).print(table(rows))


if __name__ == "__main__":
    typer.run(main)
