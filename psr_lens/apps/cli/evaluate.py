"""`psr-lens evaluate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from psr_lens.apps.cli.common import app, console, one_line_errors


@app.command()
def evaluate(
    config: Annotated[Path, typer.Option(help="YAML of settings (see `psr_lens.evaluation.config.EvaluationConfig`).")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results, instead of the configuration's `out`.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; a GPU if there is one.")] = None,
) -> None:
    """Curves over the strength, TA@C80 and TA@Cp of artifacts, beside the model as it is and the prompt. Goes on after a crash."""
    began = time.perf_counter()
    with one_line_errors():
        import psr_lens as psr
        from psr_lens._utils.distributed import own_device
        from psr_lens._utils.safe_files import write_text
        from psr_lens.errors import InputError
        from psr_lens.evaluation.config import load_judge, load_methods, load_pairs, read_config

        settings = read_config(config)
        folder = Path(settings.out) if out is None else out
        if folder.exists() and not folder.is_dir():
            raise InputError("out", str(folder), "a folder, or a path where one can be made", "A file is in the way.")
        methods = load_methods(settings.methods)
        model = psr.load_model(settings.model, device=device or own_device())
        pairs, rows = load_pairs(model, settings)
        found = psr.evaluate(
            model,
            pairs,
            methods,
            load_judge(settings.judge, model, pairs, rows),
            calibration=settings.calibrated_by(),
            with_prompt=settings.with_prompt,
            sampling=settings.sampled_by(),
            cache=folder / "answers",
        )
        table = found.table(trait=settings.trait or settings.group or "", block=settings.block)
        table.to_json(folder / "results.json")
        write_text(folder / "results.md", found.to_markdown())
        write_text(folder / "pareto.html", psr.plots.pareto(table).to_html(include_plotlyjs=True))
    console.print(found.to_markdown(), highlight=False, markup=False, soft_wrap=True)
    console.print(f"→ {folder}  ({time.perf_counter() - began:.0f} s)", highlight=False, markup=False)
