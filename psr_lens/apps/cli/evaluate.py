"""`psr-lens evaluate`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from psr_lens.apps.cli.common import app, one_line_errors, say, say_where
from psr_lens.apps.cli.flat_options import flat_options
from psr_lens.apps.cli.option_groups import DeviceOption, JudgeServerOptions, LoadingOptions, MaybeVerifyOption


@app.command()
@flat_options
def evaluate(
    config: Annotated[
        Path, typer.Option(help="YAML file of settings: model, pairs or dataset, methods (folders of artifacts by name), judge, …")
    ],
    *,
    out: Annotated[Path | None, typer.Option(help="Folder for the results, in place of `out` in the file.")] = None,
    server: JudgeServerOptions,
    verify: MaybeVerifyOption = None,
    device: DeviceOption = None,
) -> None:
    """Score artifacts over a range of strengths, and at target coherences (TA@C80, TA@Cp), next to the unsteered model and the prompt.

    An interrupted evaluation is resumed from its folder.
    """
    began = time.perf_counter()
    with one_line_errors():
        import psr_lens as psr
        from psr_lens._utils.safe_files import write_text
        from psr_lens.apps.output_folder import check_folder
        from psr_lens.apps.template_time import kept_time
        from psr_lens.evaluation.config import check_before_weights, load_methods, read_asked, read_config
        from psr_lens.evaluation.judge_settings import load_judge
        from psr_lens.prompts.chat_templates import at_time
        from psr_lens.results.judgement import SIDES

        settings = read_config(config)
        settings = replace(settings, judge=server.judge(settings.judge))
        folder = check_folder(settings.out if out is None else out)
        methods, asked = load_methods(settings.methods), read_asked(settings)
        check_before_weights(settings, methods, asked, server.key)
        model = LoadingOptions(settings.verify if verify is None else verify, device).load(settings.model)
        pairs = asked.prompts(model, at_time(settings.chat, kept_time(model, folder)))
        found = psr.evaluate(
            model,
            pairs,
            methods,
            load_judge(settings.judge, model, pairs, asked.rows, server=server.key),
            calibration=settings.calibrated_by(),
            sampling=settings.sampled_by(),
            cache=folder / "answers",
        )
        table = found.table(trait=settings.trait or settings.group or "", block=settings.block)
        table.to_json(folder / "results.json")
        write_text(folder / "results.md", found.to_markdown())
        sides = {side for curve in found.curves.values() for point in curve for side in point.gives or ()}
        if sides == set(SIDES):  # with one kind of score there is no plane to show
            write_text(folder / "pareto.html", psr.plots.pareto(table).to_html(include_plotlyjs=True))
    say(found.to_markdown())
    say_where(folder, began)
