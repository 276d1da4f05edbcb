"""`psr-lens run`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from psr_lens.apps.cli.common import app, console, one_line_errors

if TYPE_CHECKING:
    from psr_lens.apps.pipeline import RunResult


@app.command()
def run(
    model: Annotated[str | None, typer.Option(help="A name that TransformerLens knows, a local folder, or organism.")] = None,
    instruction: Annotated[str | None, typer.Option(help="What the prompted context adds.")] = None,
    questions: Annotated[Path | None, typer.Option(help="Questions, one a line; or .jsonl or .csv, as `fit` takes.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of everything that is made; a run that was cut off goes on there.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML of settings (see `psr_lens.apps.pipeline.RunConfig`); options count more.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Who scores: llm:PROMPT.txt, classifier:FOLDER:LABEL, perplexity, …")] = None,
    paraphrase: Annotated[str | None, typer.Option(help="The instruction in other words: the yardstick.")] = None,
    layers: Annotated[str | None, typer.Option(help="Where A-PSR acts: all, 3, or 3,4,5.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many questions.")] = None,
    held_out: Annotated[str | None, typer.Option(help="Share or number of questions to measure on.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest response.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message of both prompts.")] = None,
    prefix: Annotated[str | None, typer.Option(help="Words that every response begins with.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    backend: Annotated[str | None, typer.Option(help="hooked_transformer, bridge or auto.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; a GPU if there is one.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split, the responses, the answers and the fits.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and what it costs; write nothing.")] = False,
) -> None:
    """Replace an instruction on your own model and questions: responses, fits, answers side by side, comparison and report."""
    began = time.perf_counter()
    with one_line_errors():
        from psr_lens._utils.distributed import own_device
        from psr_lens.apps.pipeline import plan_run, read_config
        from psr_lens.apps.pipeline import run as run_all

        given = _config_changes(
            config,
            {
                "model": model,
                "instruction": instruction,
                "questions": None if questions is None else str(questions),
                "out": None if out is None else str(out),
                "judge": judge,
                "paraphrase": paraphrase,
                "layers": _value(layers),
                "limit": limit,
                "held_out": _value(held_out),
                "dtype": dtype,
                "backend": backend,
                "seed": seed,
            },
            {"sampling": {"max_new_tokens": max_new_tokens}, "chat": {"system": system, "prefix": prefix}},
        )
        settings = read_config(config, given)
        if dry_run:
            plan = plan_run(settings)
            console.print(str(plan), highlight=False, markup=False, soft_wrap=True)
            console.print()
            console.print(plan.view)
            return
        result = run_all(settings, device=device or str(own_device()), say=_say, show=console.print)
        _say(_told(result))
    _say(f"→ {result.out}  ({time.perf_counter() - began:.0f} s)")


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _config_changes(config: Path | None, options: dict[str, Any], nested: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The options that were given; those that belong into a mapping of the file join what it has there."""
    from psr_lens._utils.yaml_config import yaml_mapping

    there = {} if config is None else yaml_mapping(config, "`model: organism`")
    changes = {name: value for name, value in options.items() if value is not None}
    for name, values in nested.items():
        if given := {key: value for key, value in values.items() if value is not None}:
            changes[name] = {**(there.get(name) or {}), **given}
    return changes


def _value(text: str | None) -> Any:
    """A number, a list of numbers or a text, as it was written."""
    if text is None:
        return None
    try:
        return yaml.safe_load(f"[{text}]" if "," in text else text)
    except yaml.YAMLError:
        return text


def _told(result: RunResult) -> str:
    """The scores and the relative RMSE of every method, a line each."""
    scores = {each.method: each for each in result.comparison.scores}
    lines = []
    for name in dict.fromkeys([*scores, *result.comparison.methods]):
        parts = []
        if name in scores:
            parts.append(f"trait {scores[name].trait:.1f}, coherence {scores[name].coherence:.1f} ({scores[name].n} answers)")
        if name in result.comparison.methods:
            rmse = float(result.comparison.methods[name].relative_rmse[-1])
            parts.append(f"relative RMSE after the last layer {rmse:.2f}")
        lines.append(f"{name}: {'; '.join(parts)}")
    return "\n".join(lines)
