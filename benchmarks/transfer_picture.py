"""The picture of docs/transfer.md: what each rung keeps of nine traits, between a random map and the target's own fit.

python benchmarks/transfer_picture.py benchmarks/transfer.json docs/rungs.png
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import psr_lens as psr

SHOWN = {
    "native": "target's own fit",
    "through text": "1: through text",
    "gates, plain map": "2: gates",
    "gates, others' map": "2: gates, others' map",
    "gates through text, plain map": "3: gates through text",
    "whole, ridge": "4: whole, ridge",
    "whole, procrustes": "4: whole, Procrustes",
    "whole, anchors": "4: whole, anchors",
    "whole, differences": "4: whole, differences",
    "co-pilot": "5: co-pilot",
    "gates, shuffled map": "shuffled map",
    "gates, random map": "random map",
    "constants": "constants",
}
"""Cells of the file as the picture calls them."""


def results(content: dict[str, Any], models: str, at: str = "alpha 1") -> psr.ResultTable:
    """A row for each cell that every trait has, and for each trait."""
    traits = content["models"][models]["traits"]
    rows = []
    for cell, name in SHOWN.items():
        if all(at in held.get(cell, ()) for held in traits.values()):
            for trait, held in traits.items():
                row = held[cell][at]
                rows.append(psr.Result(name, "trait", row["trait"], row["n"], tuple(row["interval"]), trait))
    return psr.ResultTable(tuple(rows))


def main(
    numbers: Annotated[Path, typer.Argument(help="The file of numbers that `transfer.py` wrote.")],
    out: Annotated[Path, typer.Argument(help="The picture, with its ending.")],
    models: Annotated[str, typer.Option(help="Which pair of models.")] = "organism → organism-gpt2",
) -> None:
    """Draw it."""
    table = results(json.loads(numbers.read_text(encoding="utf-8")), models)
    figure = psr.plots.rungs(table, SHOWN["native"], SHOWN["gates, random map"])
    figure.write_image(out, width=620, scale=2)


if __name__ == "__main__":
    typer.run(main)
