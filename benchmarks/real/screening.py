"""Which instructions a real chat model follows.

python benchmarks/real/screening.py MODEL questions.parquet --json benchmarks/real/MODEL.json

An instruction is used if the mean trait on 24 questions is at least 50 with the prompt and at most 10 without. Those that are not used
are in the file too, with their scores. The model is a folder, a `.gguf` file or a name on the Hugging Face Hub; the questions are
AxBench's `input`s shorter than 70 characters (a parquet file of its training data).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.append(str(Path(__file__).parents[1]))  # what all benchmarks share
from _instructions import INSTRUCTIONS, SAMPLING, SEED, questions
from _numbers import opened

import psr_lens as psr
from psr_lens.evaluation.scores import score
from psr_lens.generation.sampling import Response
from psr_lens.models import HookedModel

SCREENED = 24
"""Number of questions of the screening; the table's held-out questions are others."""
FOLLOWED, UNPROMPTED = 50.0, 10.0
"""Least mean trait with the prompt, and most without."""
EMPTY: dict[str, Any] = {"format": 1, "seed": SEED, "screened": {}, "instructions": {}}
"""What a file of numbers holds at first."""


def screened(model: HookedModel, name: str, asked: Sequence[str], unprompted: Sequence[Response]) -> dict[str, Any]:
    """Trait with and without the prompt."""
    given = INSTRUCTIONS[name]
    pairs = psr.prompt_pairs(model, asked, given.text, place="after")
    row: dict[str, Any] = {"instruction": given.text, "n": len(pairs)}
    prompted = psr.generate(model, pairs, context="prompted", sampling=SAMPLING)
    for key, responses in (("none", unprompted), ("prompt", prompted)):
        row[key] = score(key, pairs, responses, given.judge).trait
        row[f"{key}, examples"] = [each.text for each in responses[:2]]
    return row | {"used": bool(row["prompt"] >= FOLLOWED and row["none"] <= UNPROMPTED)}


def main(
    model: Annotated[str, typer.Argument(help="A chat model: a folder, a `.gguf` file or a name.")],
    file: Annotated[Path, typer.Argument(help="Parquet file of AxBench's training data.")],
    json_file: Annotated[Path, typer.Option("--json", help="File of the numbers, which is added to.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU if there is one.")] = "auto",
) -> None:
    """Try every instruction that the file lacks."""
    content, save = opened(json_file, EMPTY)
    loaded = psr.load_model(model, backend="bridge", device=device)
    asked = questions(file, SCREENED)
    unprompted = psr.generate(
        loaded, psr.prompt_pairs(loaded, asked, INSTRUCTIONS["french"].text, place="after"), sampling=SAMPLING
    )
    for name in INSTRUCTIONS:
        if name not in content["screened"]:
            content["screened"][name] = found = screened(loaded, name, asked, unprompted)
            save()
            print(f"{name}: {found['none']:.0f} → {found['prompt']:.0f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
