"""The whole line on a user's model and questions: prompts, responses, fits, answers, comparison, report."""

from __future__ import annotations

from psr_lens.apps.pipeline.config import RunConfig, read_config
from psr_lens.apps.pipeline.plan import Plan, plan_run
from psr_lens.apps.pipeline.steps import RunResult, run

__all__ = ["Plan", "RunConfig", "RunResult", "plan_run", "read_config", "run"]
