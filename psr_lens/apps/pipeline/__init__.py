"""`psr-lens run`: from a model and a file of questions to fitted methods, answers, a comparison and a report."""

from __future__ import annotations

from psr_lens.apps.pipeline.config import RunConfig, read_config
from psr_lens.apps.pipeline.dry_run import Plan, plan_run
from psr_lens.apps.pipeline.steps import RunResult, run

__all__ = ["Plan", "RunConfig", "RunResult", "plan_run", "read_config", "run"]
