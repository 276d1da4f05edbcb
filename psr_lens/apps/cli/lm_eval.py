"""`psr-lens lm-eval`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from psr_lens.apps.cli.common import app, one_line_errors


class _AllHandedOn(TyperCommand):
    """A command that takes all its arguments, `--help` too, as the values of its option `--given`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse all arguments."""
        return list(super().parse_args(ctx, [f"--given={each}" for each in args]))


@app.command("lm-eval", cls=_AllHandedOn)
def lm_eval(*, given: Annotated[list[str] | None, typer.Option(hidden=True)] = None) -> None:
    """Run lm-evaluation-harness with the model types psr and psr-completions; all arguments are those of its own command, lm_eval.

    psr-lens lm-eval --model psr --model_args pretrained=FOLDER,artifact=FOLDER,alpha=1.0 --tasks TASK
    """
    with one_line_errors():
        from psr_lens._utils.optional import package

        command = package("lm_eval.__main__", "lm-eval")
        from psr_lens.apps import lm_eval_completions, lm_eval_model  # noqa: F401 (register the model types)

        sys.argv[:] = ["psr-lens lm-eval", *(given or ())]
        command.cli_evaluate()
