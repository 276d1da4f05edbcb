"""`accelerate launch --module psr_lens.apps.cli …`."""

from psr_lens.apps.cli.common import app

app()
