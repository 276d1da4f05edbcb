"""The command line: one file per command or group of commands; torch is loaded only when a command runs."""

from __future__ import annotations

from psr_lens.apps.cli import benchmark, capture, demo, evaluate, fit, generate, lm_eval, play, run, serve, store, transfer
from psr_lens.apps.cli.common import app

__all__ = [
    "app",
    "benchmark",
    "capture",
    "demo",
    "evaluate",
    "fit",
    "generate",
    "lm_eval",
    "play",
    "run",
    "serve",
    "store",
    "transfer",
]
