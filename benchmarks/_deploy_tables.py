"""The tables of `deploy.py`'s numbers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from _deployed import Run

BEGIN, END = "<!-- the tables of benchmarks/deploy.json -->", "<!-- the end of these tables -->"
SHOWN: Final = ("none", "PSR", "prompt", "prompt, cached")
"""Columns of the tables by length; what gates cost while nothing steers is in the table of ratios."""


def put_into(page: Path, tables: str) -> None:
    """Write the tables between the two comments of a page."""
    text, count = re.subn(
        f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{tables}\n{END}", page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{page}: expected the lines {BEGIN} and {END}, once")
    page.write_text(text, encoding="utf-8")


def tables_of(content: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    lines: list[str] = []
    about = content["settings"]
    for way, held in content["ways"].items():
        lines += [f"**{about['model']} in {about['dtype']}, {way}** ({held['versions']}; {held['machine']})", ""]
        lines += _by_cell("Time to the first token, ms", held, lambda run, _: 1_000 * run.first)
        lines += _by_cell("Tokens a second, all requests together", held, lambda run, at_once: at_once * about["new"] / run.whole)
        if way.endswith(" on cpu"):
            lines += _cpu_times(held)
        lines += _ratios(held)
    return "\n".join([*lines, *_memory(content)])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _cells(held: dict[str, Any]) -> Iterator[tuple[int, int, dict[str, list[Run]]]]:
    """Requests at a time, length of the instruction, and the runs of every kind."""
    for label, kinds in held["cells"].items():
        requests, length = map(int, label.split(" × "))
        yield requests, length, {name: [Run(*each) for each in runs] for name, runs in kinds.items()}


def _by_cell(title: str, held: dict[str, Any], value: Callable[[Run, int], float]) -> list[str]:
    rows = []
    for requests, length, runs in _cells(held):
        found = [_spread([value(run, requests) for run in runs[name]]) for name in SHOWN]
        rows.append([str(requests), f"{length:,}", *found])
    return [f"{title}:", "", *_table(("requests at a time", "tokens of the instruction", *SHOWN), rows)]


def _cpu_times(held: dict[str, Any]) -> list[str]:
    """What other processes on a busy machine do not count in."""
    rows = []
    for requests, length, runs in _cells(held):
        parts = [[[run.first_cpu, run.whole_cpu] for run in runs[name]] for name in SHOWN]
        medians = [[1_000 * statistics.median(each) / requests for each in zip(*found, strict=True)] for found in parts]
        rows.append([str(requests), f"{length:,}", *(f"{first:,.0f} / {whole:,.0f}" for first, whole in medians)])
    title = (
        "CPU time in ms, divided by the number of requests: until all have their first token / until all have their last, medians:"
    )
    return [title, "", *_table(("requests at a time", "tokens of the instruction", *SHOWN), rows)]


def _spread(values: Sequence[float], digits: int = 0) -> str:
    """Median, and range."""
    middle, low, high = (f"{each:,.{digits}f}" for each in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low}–{high})"


def ratios(held: dict[str, Any], kind: str, requests: int, part: str) -> list[float]:
    """A kind's tokens a second to those of no steering on a model without gates, turn by turn, over all lengths.

    Args:
        held: The numbers of one way.
        kind: One of `KINDS`.
        requests: How many at a time.
        part: `whole`, or `whole_cpu` for the tokens of a second of CPU time.
    """
    return [
        getattr(bare, part) / getattr(run, part)
        for at_once, _, runs in _cells(held)
        if at_once == requests
        for bare, run in zip(runs["none"], runs[kind], strict=True)
    ]


def _ratios(held: dict[str, Any]) -> list[str]:
    rows = []
    for requests in dict.fromkeys(requests for requests, _, _ in _cells(held)):
        for kind in ("PSR", "none, gates"):
            found = [ratios(held, kind, requests, part) for part in ("whole", "whole_cpu")]
            rows.append([str(requests), kind, *(_quartiles(each) for each in found), str(len(found[0]))])
    heads = ("requests at a time", "", "tokens a second", "of CPU time", "turns")
    return ["To no steering on a model without gates, paired within turns, median (quartiles):", "", *_table(heads, rows)]


def _quartiles(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _memory(content: dict[str, Any]) -> list[str]:
    """KV memory of a request: the tokens that are kept, and blocks that vLLM counted."""
    about = content["settings"]
    kept = about["question"] + about["new"] - 1  # the last token is never read
    held = min(content["ways"].items(), key=lambda way: not way[0].startswith("vllm"))[1]
    largest = max(requests for requests, _, _ in _cells(held))
    rows = []
    for requests, length, runs in _cells(held):
        if requests != largest:
            continue
        shared = length // about["block"] * about["block"]
        tokens = {"none": kept, "PSR": kept, "prompt": length + kept, "prompt, cached": length - shared + kept}
        row = [f"{length:,}"]
        for name in SHOWN:
            cell = f"{tokens[name] * about['kv bytes per token'] / 1e6:.1f}"
            counted = runs[name][0].blocks
            row.append(cell if counted is None else f"{cell} ({counted:.1f})")
        rows.append(row)
    title = (
        "KV memory of a request in MB, from the model's config; of a cached instruction only what is behind its last whole block, "
    )
    title += "since the rest is held once for all requests. In brackets: the most blocks that the engine counted in use, for "
    title += f"{largest} requests, divided by {largest}; blocks that they share are counted once:"
    return [title, "", *_table(("tokens of the instruction", *SHOWN), rows)]
