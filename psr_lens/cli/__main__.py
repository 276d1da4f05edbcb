"""`accelerate launch --module psr_lens.cli …`."""

from psr_lens.cli import app

app()
