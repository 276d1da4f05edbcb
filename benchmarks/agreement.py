"""Whether an instruction pushes the same tokens in both embedded models, and whether the gates of one are read from the other.

python benchmarks/agreement.py organism organism-gpt2 --json benchmarks/agreement.json
python benchmarks/agreement.py --table-of benchmarks/agreement.json

The replacement (rank 4, all layers) is fitted on answers to 60 descriptions, and all is measured on answers to 40 others. The numbers are
saved after every trait, and a trait that the file holds is not measured again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from _numbers import opened, traits_of

import psr_lens as psr
from psr_lens.results.bootstrap import Estimate

FITTED, HELD_OUT = 60, 40
"""Numbers of questions."""


def number(found: Estimate, *at: int) -> list[float]:
    """A value with its 95 % interval over texts."""
    return [float(found.value[at]), *map(float, found.interval(*at))]


def measured(source: Any, target: Any, trait: str) -> dict[str, Any]:
    """The numbers of one trait."""
    asked = {
        FITTED: psr.organism.questions(FITTED, split="train", kind="description", seed=1),
        HELD_OUT: psr.organism.questions(HELD_OUT, split="held_out", kind="description"),
    }
    judge, sampling = psr.judges.organism(trait), psr.SamplingConfig(max_new_tokens=48)
    texts = {
        count: psr.sample_responses(
            source, psr.prompt_pairs(source, questions, psr.organism.instruction(trait)), judge, sampling=sampling
        )
        for count, questions in asked.items()
    }
    found = psr.transfer.agreement(source, target, texts[HELD_OUT], psr.fit(source, texts[FITTED]))
    matched = found.matched()
    gates = found.gates
    if gates is None:
        raise RuntimeError("a replacement was given")
    return {
        "texts": found.texts,
        "pairs": len(found.pairs.text),
        "massive": found.massive,
        "matching": [list(pair) for pair in found.matching],
        "correlation": number(found.mean()),
        "correlation by layer": [number(matched, layer) for layer in range(len(found.matching))],
        "gates": number(gates.mean()),
        "gates by layer": [number(gates.matched(), at) for at in range(len(gates.matching))],
        "shuffled gates": number(gates.control_mean()),
    }


def table_of(content: dict[str, Any], models: str) -> list[str]:
    """The rows of a Markdown table."""
    rows = []
    for trait, held in content["models"][models]["traits"].items():
        layers = [value for value, *_ in held["correlation by layer"]]
        cells = [
            trait,
            f"{held['texts']}, {held['pairs']:,}",
            _said(held["correlation"]),
            f"{min(layers):.2f}, {max(layers):.2f}",
            _said(held["gates"]),
            f"{held['shuffled gates'][0]:.2f}".replace("-0.00", "0.00").replace("-", "−"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _said(found: list[float]) -> str:
    value, low, high = found
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def main(
    source: Annotated[str, typer.Argument(help="organism or organism-gpt2.")] = "organism",
    target: Annotated[str, typer.Argument(help="The other.")] = "organism-gpt2",
    json_file: Annotated[Path, typer.Option("--json", help="File of the numbers, which is added to.")] = Path("agreement.json"),
    table: Annotated[Path | None, typer.Option("--table-of", help="Only print the tables of this file.")] = None,
) -> None:
    """Measure, and save after every trait; or print tables."""
    if table is not None:
        content = json.loads(table.read_text(encoding="utf-8"))
        for models in content["models"]:
            print(models, *table_of(content, models), sep="\n")
        return
    content, save = opened(json_file, {"format": 1, "models": {}})
    held = traits_of(content, f"{source} → {target}")
    models = [psr.load_model(name) for name in (source, target)]
    for trait in psr.organism.TRAITS:
        if trait not in held:
            held[trait] = measured(*models, trait)
            save()
            print(trait, flush=True)


if __name__ == "__main__":
    typer.run(main)
