"""`psr-lens benchmark …`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from psr_lens.apps.cli.common import app, one_line_errors, say, say_where
from psr_lens.apps.cli.option_groups import VerifyOption

benchmark_app = typer.Typer(help="Run benchmarks of the methods.", no_args_is_help=True)
app.add_typer(benchmark_app, name="benchmark")


@benchmark_app.callback()
def main() -> None:
    """Run benchmarks of the methods."""


@benchmark_app.command()
def organism(
    family: Annotated[str, typer.Option(help="Model family: llama, gpt2 or both.")] = "both",
    out: Annotated[Path, typer.Option(help="Folder for results, fits and answers; an interrupted run is resumed from it.")] = Path(
        "benchmark"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="One trait, one family, two methods, few questions: under a minute.")
    ] = False,
    trait: Annotated[list[str] | None, typer.Option(help="Only this trait; repeatable. By default three of the nine.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method, by its name in the table; repeatable.")] = None,
    held_out: Annotated[int | None, typer.Option(help="Number of held-out questions of each kind.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the questions, the sampling and the fits.")] = 0,
    verify: VerifyOption = True,
) -> None:
    """Reproduce the paper's main table (TA@C80, TA@Cp) on the shipped models; about a quarter of an hour on two cores."""
    began = time.perf_counter()
    with one_line_errors():
        from psr_lens.apps.benchmark import FAMILIES, BenchmarkConfig, run_benchmark
        from psr_lens.errors import InputError

        if family not in (*FAMILIES, "both"):
            raise InputError("family", repr(family), f"one of {', '.join(FAMILIES)}, both")
        changes: dict[str, Any] = {"seed": seed, "verify": verify}
        if family != "both":
            changes["families"] = (family,)
        changes |= {name: tuple(given) for name, given in (("traits", trait), ("methods", method)) if given}
        changes |= {"held_out": held_out} if held_out is not None else {}
        config = BenchmarkConfig.quick(**changes) if quick else BenchmarkConfig(**changes)
        run_benchmark(out, config, say=say)
    say((out / "results.md").read_text())
    say_where(out, began)
