"""The command line, a file a group of commands; each loads torch only when it is run."""

from __future__ import annotations

from psr_lens.apps.cli import benchmark, capture, demo, evaluate, fit, run, store
from psr_lens.apps.cli.common import app

__all__ = ["app", "benchmark", "capture", "demo", "evaluate", "fit", "run", "store"]
