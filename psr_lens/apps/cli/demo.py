"""`psr-lens demo`."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from psr_lens.apps.cli.common import app, console, one_line_errors, open_file, say_where
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.apps.cli.option_groups import LoadingOptions, OpenOption

if TYPE_CHECKING:
    from psr_lens.apps.demo import DemoResult
    from psr_lens.evaluation.scores import Scores


@app.command()
@flat_options
def demo(
    loading: LoadingOptions,
    out: Annotated[Path, typer.Option(help="Folder for report.html, results.json and the artifacts.")] = Path("demo"),
    trait: Annotated[
        list[str] | None,
        typer.Option(
            help="A trait of the organism, such as pirate or gloomy (default: pirate); for a chat model french, spanish or pirate "
            "(default: all three). Repeatable."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="organism (Llama-like), organism-gpt2, or a chat model: a name, a folder, or a .gguf file.")
    ] = "organism",
    questions: Annotated[
        int | None,
        typer.Option(
            help="Number of held-out questions to score on: for the organism 100 or more (default: 120), for a chat model 32 by default."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the questions, the sampling and the fits.")] = 0,
    static: Annotated[
        bool, typer.Option("--static", help=r"Also save every figure as PNG and SVG in figures/ (needs psr-lens\[static]).")
    ] = False,
    open_report: OpenOption = False,
) -> None:
    """Fit replacements for an instruction on the shipped model or a chat model, compare them with the prompt, and write a report."""
    began = time.perf_counter()
    with one_line_errors(), console.status("loading torch and TransformerLens") as status:
        from psr_lens.apps.demo import ChatDemoConfig, DemoConfig, run_demo
        from psr_lens.models import EMBEDDED

        settings = DemoConfig if model in EMBEDDED else ChatDemoConfig
        asked: dict[str, Any] = {} if questions is None else {"held_out_questions": questions}
        config = settings(model=model, seed=seed, verify=loading.verify, **asked)
        results = run_demo(out, trait or (), config, say=status.update, static=static, device=loading.device)
    console.print(_table(results))
    say_where(out / "report.html", began)
    if open_report:
        open_file(out / "report.html")


def _table(results: dict[str, DemoResult]) -> Table:
    from psr_lens.evaluation.methods import PARAPHRASE

    table = Table(title="Answers to held-out questions: mean scores, 0–100, with 95 % bootstrap intervals")
    for heading in ("trait", "method", "alpha"):
        table.add_column(heading)
    for heading in ("trait score", "coherence", "n", "relative RMSE, last layer", "without massive tokens", "median token"):
        table.add_column(heading, justify="right")
    for trait, result in results.items():
        for index, scores in enumerate(result.comparison.scores):
            table.add_row(trait if index == 0 else "", *_row(scores, result))
        if result.comparison.paraphrase_rmse is not None:
            table.add_row("", "paraphrase", "", "", "", "", *_distances(result, PARAPHRASE))
        table.add_section()
    return table


def _row(scores: Scores, result: DemoResult) -> list[str]:
    def score(mean: float, interval: tuple[float, float]) -> str:
        return f"{mean:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]"

    return [
        scores.method,
        "" if scores.alpha is None else f"{scores.alpha:g}",
        score(scores.trait, scores.trait_interval),
        score(scores.coherence, scores.coherence_interval),
        str(scores.n),
        *_distances(result, scores.method),
    ]


def _distances(result: DemoResult, method: str) -> list[str]:
    """The distances from the prompt after the last layer; empty for what is not compared or not known."""
    found = result.comparison.distances.get(method)
    return ["", "", ""] if found is None else ["" if math.isnan(each) else f"{each:.2f}" for each in found.last]
