"""`python -m psr_lens` is `psr-lens`, for launchers that take a module."""

from psr_lens.apps.cli import app

app()
