"""Peak memory of fits, each in a process of its own; Linux.

python benchmarks/memory.py                 # joint A-PSR against a bare forward and backward pass; a random model of GPT-2 small's size
python benchmarks/memory.py --gpu           # the same on 24 layers of d_model 2,048 in bfloat16: the CUDA GPU's memory
python benchmarks/memory.py --scratch       # sequential A-PSR, activations in memory and in files, of 100 and of 800 triplets
python benchmarks/memory.py --json out.json
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from _models import GPT2_SMALL, LARGE, check_gpu, large_on_gpu, machine, random_gpt2, random_triplets
from rich.console import Console
from rich.table import Table

import psr_lens as psr
from psr_lens.activations.batches import context_batch
from psr_lens.models import HookedModel, device_of, forward, frozen
from psr_lens.prompts import Triplet

MEDIUM = {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_positions": 1_024, "vocab_size": 1_000}
IN_MEMORY, IN_FILES = "A-PSR sequential, in memory", "A-PSR sequential, in files"
COUNTS = (100, 800)
JOBS = ("bare, to the last residual stream", "bare, to the logits", "A-PSR joint, MSE", "A-PSR joint, LL")


def resident(field: str) -> float:
    """Resident megabytes of the process, now (`VmRSS`) or at their peak (`VmHWM`)."""
    [kilobytes] = re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) / 1024


class Anonymous(threading.Thread):
    """The most memory that the process had within a `with` block beyond what it had before, mapped files left out, in megabytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = resident("RssAnon")
        self._over = threading.Event()

    def __enter__(self) -> Anonymous:
        self.start()
        return self

    def run(self) -> None:
        """Look every other millisecond."""
        while not self._over.wait(0.002):
            self.most = max(self.most, resident("RssAnon"))

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


def measure_sequential(job: str, count: int) -> dict[str, Any]:
    """What a layerwise fit needs beyond the model and the triplets; files that are mapped can give their memory back at any time."""
    model, triplets = random_gpt2(MEDIUM), random_triplets(MEDIUM["vocab_size"], count)
    config = psr.Sequential(regression_batch=2_048, regression_steps=5)
    with tempfile.TemporaryDirectory() as folder, Anonymous() as used:
        psr.fit(model, triplets, config, scratch=folder if job == IN_FILES else None)
    return {"job": f"{job}, {count} triplets", "before": used.before, "extra": used.most - used.before}


def bare(model: HookedModel, triplets: list[Triplet], to_logits: bool) -> None:
    """Forward, and backward with respect to the residual stream after the first block."""
    batch, last = context_batch(triplets, "base", "R", device_of(model)), []

    def begin(activation: torch.Tensor, hook: Any) -> torch.Tensor:
        return activation.detach().requires_grad_()

    def keep(activation: torch.Tensor, hook: Any) -> None:
        last.append(activation)

    hooks = [("blocks.0.hook_resid_post", begin), (f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", keep)]
    with frozen(model), model.hooks(fwd_hooks=hooks):
        logits = forward(model, batch.tokens, batch.mask)
    (logits.logsumexp(-1).sum() if to_logits else last[0].square().sum()).backward()


def measure(job: str, count: int, gpu: bool) -> dict[str, Any]:
    """What the process that does one job needs beyond the loaded model."""
    if job in (IN_MEMORY, IN_FILES):
        return measure_sequential(job, count)
    model = large_on_gpu() if gpu else random_gpt2(GPT2_SMALL)
    triplets = random_triplets(model.cfg.d_vocab, count)
    if gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
    if job.startswith("bare"):
        bare(model, triplets, job.endswith("logits"))
    else:
        objective = "ll" if job.endswith("LL") else "mse"
        psr.fit(model, triplets, psr.Joint(objective=objective, epochs=1, batch_size=count))
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else resident("VmHWM")
    return {"job": job, "before": before, "extra": peak - before}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
    count: Annotated[int, typer.Option(help="Triplets in the batch.")] = 8,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Layerwise fits, in memory and in files, of few and many triplets.")
    ] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Joint fits of a large random model in bfloat16 on the CUDA GPU.")] = False,
    job: Annotated[str | None, typer.Option(help="Do this job alone and print its numbers.")] = None,
) -> None:
    """Run the benchmark and print its table."""
    if job:
        print(json.dumps(measure(job, count, gpu)))
        return
    if gpu and scratch:
        raise typer.BadParameter("got --gpu and --scratch, expected one of them: layerwise fits are measured in the CPU's memory.")
    if gpu:  # before the processes that would say it to nobody
        check_gpu()
    sizes = LARGE if gpu else MEDIUM if scratch else GPT2_SMALL
    jobs = [(each, many) for each in (IN_MEMORY, IN_FILES) for many in COUNTS] if scratch else [(each, count) for each in JOBS]
    rows = []
    for each, many in jobs:
        command = [sys.executable, __file__, "--job", each, "--count", str(many), *(["--gpu"] if gpu else [])]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
    on = machine("cuda" if gpu else "cpu")
    title = f"{sizes['n_layer']} layers, d_model {sizes['n_embd']}" + ("" if scratch else f", {count} triplets") + f" ({on})"
    table = Table("job", "MB beyond the model", f"against {'fewer triplets' if scratch else 'bare'}", title=title)
    for place, row in enumerate(rows):
        against = rows[place - place % 2] if scratch else rows[1] if row["job"].endswith(("LL", "logits")) else rows[0]
        row["ratio"] = row["extra"] / against["extra"]
        table.add_row(row["job"], f"{row['extra']:,.0f}", f"{row['ratio']:.2f}")
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps({"format": 1, "title": title, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
