"""How good the fits are: trait and coherence on held-out questions, relative RMSE and wall time, by trait and method.

python benchmarks/fit.py                 # pirate, shout, flatter, gloomy, sea and the four harder traits, both families
python benchmarks/fit.py --quick         # one trait, one family
python benchmarks/fit.py --json out.json
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import psr_lens as psr
from psr_lens import organism
from psr_lens.evaluate import score
from psr_lens.models import HookedModel
from psr_lens.sampling import judged_triplets

SINGLE_LAYER = 1
JOINT: dict[str, Any] = {"solver": "joint", "learning_rate": 1e-2}
METHODS = {
    "S-Const DiM": psr.FitConfig(layers=SINGLE_LAYER, solver="dim"),
    "S-PSR joint": psr.FitConfig(layers=SINGLE_LAYER, epochs=10, batch_size=4, start="sequential", **JOINT),
    "S-PSR joint, random start": psr.FitConfig(layers=SINGLE_LAYER, epochs=10, batch_size=4, **JOINT),
    "A-PSR joint": psr.FitConfig(epochs=30, batch_size=8, **JOINT),
    "A-PSR sequential": psr.FitConfig(),
    "A-PSR sequential, rank 4": psr.FitConfig(rank=4),
}
CONSTANT_ALPHAS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


def measure(model: HookedModel, trait: str, fit_questions: int, held_out: int, seed: int) -> list[dict[str, Any]]:
    """One row a method for one trait; all methods get the same questions and the same random streams."""
    judge = psr.judges.organism(trait)
    instruction = organism.instruction(trait)
    pairs = psr.prompt_pairs(model, organism.questions(fit_questions, seed=seed), instruction)
    triplets = psr.sample_responses(model, pairs, judge, psr.SamplingConfig(seed=seed), progress=False)
    asked = psr.prompt_pairs(model, organism.questions(held_out, split="held_out", seed=seed), instruction)
    sampling = psr.SamplingConfig(seed=seed + 1)
    prompted = psr.generate(model, asked, "steered", sampling)
    fitted, seconds = {}, {}
    for name, config in METHODS.items():
        began = time.perf_counter()
        fitted[name] = psr.fit(model, triplets, config)
        seconds[name] = time.perf_counter() - began
    compared = psr.compare(model, judged_triplets(asked, prompted, judge), fitted, paraphrase=organism.instruction(trait, 1))
    rows: list[dict[str, Any]] = [
        asdict(psr.evaluate(model, asked, judge, config=sampling)),
        asdict(score("prompt", asked, prompted, judge))
        | {"relative_rmse": [] if compared.paraphrase_rmse is None else compared.paraphrase_rmse.tolist()},
    ]
    for name, replacement in fitted.items():
        options: dict[str, Any] = {"method": name, "config": sampling}
        found = (
            psr.best_alpha(model, asked, judge, replacement, CONSTANT_ALPHAS, **options)
            if "Const" in name
            else psr.evaluate(model, asked, judge, replacement, **options)
        )
        rows.append(asdict(found) | {"seconds": seconds[name], "relative_rmse": compared.methods[name].relative_rmse.tolist()})
    return [{"model": model.cfg.model_name, "target": trait, **row} for row in rows]


def table(rows: list[dict[str, Any]], title: str) -> Table:
    """The rows as a table."""
    made = Table(title=title)
    for heading in ("model", "trait", "method", "alpha", "trait score", "coherence", "n", "relative RMSE, last layer", "fit, s"):
        made.add_column(heading)
    for row in rows:
        rmse = row.get("relative_rmse") or [None]
        made.add_row(
            row["model"],
            row["target"],
            row["method"] + (" (RMSE: paraphrase)" if row["method"] == "prompt" else ""),
            "" if row["alpha"] is None else f"{row['alpha']:g}",
            f"{row['trait']:.1f} [{row['trait_interval'][0]:.1f}, {row['trait_interval'][1]:.1f}]",
            f"{row['coherence']:.1f} [{row['coherence_interval'][0]:.1f}, {row['coherence_interval'][1]:.1f}]",
            str(row["n"]),
            "" if rmse[-1] is None else f"{rmse[-1]:.2f}",
            f"{row['seconds']:.1f}" if "seconds" in row else "",
        )
    return made


def main(
    quick: Annotated[bool, typer.Option("--quick", help="One trait, one family.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    trait: Annotated[list[str] | None, typer.Option(help="Only these traits.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only these models.")] = None,
    fit_questions: Annotated[int, typer.Option(help="Questions to fit on.")] = 240,
    held_out: Annotated[int, typer.Option(help="Held-out questions.")] = 150,
    seed: Annotated[int, typer.Option(help="Seed of questions, sampling and fits.")] = 0,
) -> None:
    """Run the benchmark and print its table."""
    if quick:
        METHODS.pop("A-PSR joint")
    traits = trait or (["pirate"] if quick else list(organism.TRAITS))
    models = model or (["organism"] if quick else ["organism", "organism-gpt2"])
    jobs = [(name, each) for name in models for each in traits]
    loaded = {name: psr.load_model(name) for name in models}
    rows = [row for name, each in tqdm(jobs, unit="trait") for row in measure(loaded[name], each, fit_questions, held_out, seed)]
    title = f"{fit_questions} questions to fit on, {held_out} held out, seed {seed}, {torch.get_num_threads()} threads"
    Console(width=170).print(table(rows, title))
    if json_file:
        json_file.write_text(json.dumps({"format": 1, "title": title, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
