"""Does `psr.outlook` say beforehand what fits then reach? Every trait of both organisms: expected and reached shares, on other responses.

python benchmarks/outlook.py --json out.json            # about ten minutes on 2 cores
python benchmarks/outlook.py --trait pirate --model organism
python benchmarks/outlook.py --tables-of out.json       # the table of a file that --json wrote, in Markdown
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import typer
from _models import machine

import psr_lens as psr
from psr_lens.models import HookedModel
from psr_lens.results.correlation import mean_ranks

FIT, OTHERS = 60, 40
"""Questions to look at and fit on, and questions to compare on."""
RANK: Final = 4
SEED: Final = 0
HEADINGS: Final = ("model", "what", "pairs", "Spearman ρ", "expected − reached, mean", "largest difference")


def measured(model: HookedModel, name: str, trait: str) -> list[dict[str, Any]]:
    """What is expected and what is reached, for A-PSR after each layer and for S-PSR at each."""
    pairs = psr.prompt_pairs(model, psr.organism.questions(FIT + OTHERS, seed=SEED), psr.organism.instruction(trait))
    judge = psr.judges.organism(trait)
    known, others = (psr.sample_responses(model, part, judge) for part in (pairs[:FIT], pairs[FIT:]))
    found = psr.outlook(model, known, ranks=[RANK])
    methods = {"A-PSR": psr.fit(model, known, psr.Sequential(rank=RANK))}
    methods |= {f"S-PSR {layer}": psr.fit(model, known, psr.Sequential(rank=RANK, layers=layer)) for layer in found.layers}
    reached = {key: 1 - trace.relative_rmse**2 for key, trace in psr.compare(model, others, methods).methods.items()}
    rows = []
    for layer in found.layers:
        for what, key, acting in (("A-PSR", "A-PSR", "all"), ("S-PSR", f"S-PSR {layer}", "one")):
            expected = float(found.reachable(acting, RANK).value[layer])  # type: ignore[arg-type]
            row = {"model": name, "trait": trait, "what": what, "layer": layer, "expected": expected}
            rows.append(row | {"reached": float(reached[key][layer]), "responses": [len(known), len(others)]})
    return rows


def lines_of(rows: list[dict[str, Any]]) -> list[list[str]]:
    """The table's cells: over all traits and layers of a model, and for A-PSR after the last layer over the traits."""
    last = max(row["layer"] for row in rows)
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        some = [row for row in rows if row["model"] == model]
        kinds = {
            "A-PSR, after every layer": [row for row in some if row["what"] == "A-PSR"],
            "A-PSR, after the last": [row for row in some if row["what"] == "A-PSR" and row["layer"] == last],
            "S-PSR, at its layer": [row for row in some if row["what"] == "S-PSR"],
        }
        for what, chosen in kinds.items():
            expected, reached = (np.array([row[key] for row in chosen]) for key in ("expected", "reached"))
            rho = np.corrcoef(mean_ranks(expected), mean_ranks(reached))[0, 1]
            off = expected - reached
            lines.append([model, what, str(len(chosen)), f"{rho:.2f}", f"{off.mean():+.3f}", f"{off[np.abs(off).argmax()]:+.3f}"])
    return lines


def print_markdown(rows: list[dict[str, Any]]) -> None:
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    print("\n".join(f"| {' | '.join(line)} |" for line in lines_of(rows)))


def main(
    model: Annotated[list[str] | None, typer.Option(help="organism or organism-gpt2; repeatable. Default: both.")] = None,
    trait: Annotated[list[str] | None, typer.Option(help="A trait; repeatable. Default: all.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here, after every trait.")] = None,
    tables_of: Annotated[Path | None, typer.Option(help="Print the table of such a file, and measure nothing.")] = None,
) -> None:
    """Run the benchmark and print its table."""
    if tables_of:
        print_markdown(json.loads(tables_of.read_text())["rows"])
        return
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in model or ["organism", "organism-gpt2"]:
        loaded = psr.load_model(name)
        for each in trait or psr.organism.TRAITS:
            rows += measured(loaded, name, each)
            if json_file:
                found = {"format": 1, "seed": SEED, "rank": RANK, "machine": machine(), "rows": rows}
                json_file.write_text(json.dumps(found, indent=1) + "\n")
    print_markdown(rows)


if __name__ == "__main__":
    typer.run(main)
