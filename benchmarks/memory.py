"""Peak memory of an A-PSR joint fit against a bare forward and backward pass of the same batch, each in a process of its own.

python benchmarks/memory.py                 # a random model of GPT-2 small's size, 8 triplets; Linux, on the CPU
python benchmarks/memory.py --json out.json
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from _models import GPT2_SMALL, random_gpt2, random_triplets
from rich.console import Console
from rich.table import Table

import psr_lens as psr
from psr_lens.batches import context_batch
from psr_lens.models import HookedModel, forward, frozen
from psr_lens.prompts import Triplet

JOBS = ("bare, to the last residual stream", "bare, to the logits", "A-PSR joint, MSE", "A-PSR joint, LL")


def resident(field: str) -> float:
    """Resident megabytes of the process, now (`VmRSS`) or at their peak (`VmHWM`)."""
    [kilobytes] = re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


def bare(model: HookedModel, triplets: list[Triplet], to_logits: bool) -> None:
    """Forward, and backward with respect to the residual stream after the first block."""
    batch, last = context_batch(triplets, "base", "R"), []

    def begin(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation.detach().requires_grad_()

    def keep(activation: torch.Tensor, hook: Any) -> None:
        last.append(activation)

    hooks = [("blocks.0.hook_resid_post", begin), (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", keep)]
    with frozen(model), model.hooks(fwd_hooks=hooks):
        logits = forward(model, batch.tokens, batch.mask)
    (logits.logsumexp(-1).sum() if to_logits else last[0].square().sum()).backward()


def measure(job: str, count: int) -> dict[str, Any]:
    """What the process that does one job needs beyond the loaded model."""
    model = random_gpt2(GPT2_SMALL)
    triplets = random_triplets(GPT2_SMALL["vocab_size"], count)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    if job.startswith("bare"):
        bare(model, triplets, job.endswith("logits"))
    else:
        objective = "ll" if job.endswith("LL") else "mse"
        psr.fit(model, triplets, psr.FitConfig(solver="joint", objective=objective, epochs=1, batch_size=count))
    return {"job": job, "before": before, "extra": resident("VmHWM") - before}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    count: Annotated[int, typer.Option(help="Triplets in the batch.")] = 8,
    job: Annotated[str | None, typer.Option(help="Do this job alone and print its numbers.")] = None,
) -> None:
    """Run the benchmark and print its table."""
    if job:
        print(json.dumps(measure(job, count)))
        return
    rows = []
    for each in JOBS:
        command = [sys.executable, __file__, "--job", each, "--count", str(count)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
    title = f"{GPT2_SMALL['n_layer']} layers, d_model {GPT2_SMALL['n_embd']}, {count} triplets"
    table = Table("job", "MB beyond the model", "against bare", title=title)
    for row in rows:
        against = rows[1] if row["job"].endswith(("LL", "logits")) else rows[0]
        row["ratio"] = row["extra"] / against["extra"]
        table.add_row(row["job"], f"{row['extra']:,.0f}", f"{row['ratio']:.2f}")
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps({"format": 1, "title": title, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
