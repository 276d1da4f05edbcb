"""What capture costs, as ratios measured side by side in one run.

python benchmarks/capture.py                 # organism and a random GPT-2-small-sized model; about ten minutes on 2 cores
python benchmarks/capture.py --quick         # organism and fewer repeats, under a minute
python benchmarks/capture.py --gpu           # a random model of 24 layers and d_model 2,048 in bfloat16 on the CUDA GPU, and nothing else
python benchmarks/capture.py --json out.json
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from _models import GPT2_SMALL, large_on_gpu, random_gpt2, random_triplets, side_by_side
from _models import machine as machine_name
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from tqdm import tqdm

import psr_lens as psr
from psr_lens import organism
from psr_lens.activations.batches import context_batch, length_batches
from psr_lens.activations.paired_passes import TOKEN_BUDGET, PairedReading
from psr_lens.activations.store import StoreSpec, StoreWriter
from psr_lens.models import HookedModel, device_of, forward
from psr_lens.models.hook_points import select_hooks
from psr_lens.prompts import Triplet


def organism_triplets(model: HookedModel, count: int) -> list[Triplet]:
    """Real ones; each response several times if there are not enough."""
    pairs = psr.prompt_pairs(model, organism.questions(min(count, 200)), organism.instruction("pirate"))
    sampled = list(psr.sample_responses(model, pairs))
    return [sampled[index % len(sampled)] for index in range(count)]


def cost_of_capture(model: HookedModel, triplets: Sequence[Triplet], repeats: int) -> list[dict[str, Any]]:
    """Capture against bare forwards and against `run_with_cache`, on the same batches."""
    batches = [[triplets[index] for index in indices] for indices in length_batches(triplets, TOKEN_BUDGET)]
    contexts = [context_batch(batch, context, "R", device_of(model)) for batch in batches for context in ("base", "prompted")]
    every = [*select_hooks(model, "all"), *select_hooks(model, "pattern")]
    # What is captured comes to the CPU's memory, so a GPU's cache has to as well.
    given, against = ({}, "") if device_of(model).type == "cpu" else ({"device": "cpu"}, " to the CPU")

    def bare() -> None:
        with torch.no_grad():
            for batch in contexts:
                forward(model, batch.tokens, batch.mask)

    def cached() -> None:
        for batch in contexts:
            model.run_with_cache(batch.tokens, attention_mask=batch.mask, **given)  # type: ignore[attr-defined]

    def captured(hooks: Sequence[str], to: Any = None) -> Callable[[], object]:
        return lambda: psr.capture(model, triplets, hooks, to=to)

    name = model.cfg.model_name
    found = side_by_side({"bare": bare, "captured": captured(["resid_post"])}, repeats, f"{name}, resid_post")
    rows = [
        {
            "model": name,
            "what": "resid_post of every layer / two bare forwards",
            "ratio": found["captured"] / found["bare"],
            "bound": "≤ 1.15",
            "seconds": found,
        }
    ]
    jobs = {"cached": cached, "captured": captured(every), "statistics": captured(every, psr.Statistics())}
    found = side_by_side(jobs, max(3, repeats // 2), f"{name}, every hook")
    for job, bound in (("captured", "≤ 1.3"), ("statistics", "")):
        into = "in memory" if job == "captured" else "statistics"
        what = f"every hook point and pattern, {into} / two run_with_cache{against}"
        rows.append({"model": name, "what": what, "ratio": found[job] / found["cached"], "bound": bound, "seconds": found})
    return rows


def peak_memory(count: int) -> float:
    """Peak resident megabytes of a process that captures statistics of `count` triplets."""
    code = f"from capture import streamed; streamed({count})"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def streamed(count: int) -> None:
    """What `peak_memory` runs. The kernel's own mark of this process: that of `getrusage` comes down from the parent."""
    model = psr.load_model("organism")
    # A budget that the smaller number fills too: the size of a batch is not what is asked about.
    psr.capture(model, organism_triplets(model, count), ["all", "pattern"], to=psr.Statistics(), token_budget=2_048)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


def disk_write(megabytes: int, repeats: int) -> dict[str, Any]:
    """A shard with its checksums against plain safetensors writing of the same bytes, both onto the same disk and synced."""
    model = psr.load_model("organism")
    hooks = {f"blocks.{layer}.hook_resid_post": (768,) for layer in range(12)}
    counts = megabytes * 10**6 // (4 * 768 * 12)
    triplet = replace(organism_triplets(model, 1)[0], response_ids=(1,) * (counts - 1))
    spec = StoreSpec.of(PairedReading(model, [triplet], hooks, torch.float32), shard_bytes=2 * megabytes * 10**6)
    tensors = {name: torch.randn(counts, *shape) for name, shape in hooks.items()}
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter.create(Path(folder) / "store", spec)
        jobs: dict[str, Callable[[], object]] = {
            "plain": lambda: save_file(tensors, Path(folder) / "plain.safetensors"),
            "store": lambda: writer.write(0, tensors),
        }
        found = side_by_side(jobs, repeats, "disk")
    return {
        "model": "–",
        "what": f"bytes a second written to a store / plain safetensors ({megabytes} MB)",
        "ratio": found["plain"] / found["store"],
        "bound": "≥ 0.7",
        "seconds": found,
    }


def kills(trials: int, seed: int = 0) -> dict[str, Any]:
    """Captures that are killed with SIGKILL at a random moment and then resumed; how many end as an undisturbed one, to the byte."""
    model = psr.load_model("organism")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [
            {"question": triplet.pair.question, "instruction": triplet.pair.instruction, "response": triplet.response}
            for triplet in organism_triplets(model, 100)
        ]
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))

        def start(out: str) -> subprocess.Popen[bytes]:
            given = ["--pairs", str(folder / "pairs.jsonl"), "--out", str(folder / out), "--hooks", "all", "--shard-mb", "2"]
            command = [sys.executable, "-m", "psr_lens", "capture", *given]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        start("whole").wait()
        wanted = {path.name: path.read_bytes() for path in (folder / "whole").iterdir()}
        count = sum(name.startswith("shard") for name in wanted)
        draw, same, shards = random.Random(seed), 0, []
        for trial in tqdm(range(trials), desc="kills", leave=False):
            process = start(f"trial {trial}")
            # A process takes seconds to import and a moment to capture, so a moment is a number of shards and a little more.
            moment = draw.randrange(count)
            while process.poll() is None and len(list((folder / f"trial {trial}").glob("shard*"))) < moment:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.02))
            process.kill()
            process.wait()
            shards.append(len(list((folder / f"trial {trial}").glob("shard*"))))
            start(f"trial {trial}").wait()
            same += {path.name: path.read_bytes() for path in (folder / f"trial {trial}").iterdir()} == wanted
            shutil.rmtree(folder / f"trial {trial}")
    return {
        "model": "organism",
        "what": f"captures killed at a random moment and resumed that end the same to the byte, of {trials}",
        "ratio": same / trials,
        "bound": "1",
        "shards_at_kill": shards,
        "shards": count,
    }


def on_gpu(quick: bool) -> list[dict[str, Any]]:
    """The same ratios of times where a GPU computes and the activations come to the CPU's memory."""
    large = large_on_gpu()
    return cost_of_capture(large, random_triplets(large.cfg.d_vocab, 32), 3 if quick else 9)


def on_cpu(quick: bool) -> list[dict[str, Any]]:
    """Times on two models; memory, the disk and what kills leave."""
    small = psr.load_model("organism")
    rows = cost_of_capture(small, organism_triplets(small, 100 if quick else 200), 5 if quick else 15)
    if not quick:
        rows += cost_of_capture(random_gpt2(GPT2_SMALL), random_triplets(GPT2_SMALL["vocab_size"], 24), 3)
    few, many = (peak_memory(count) for count in (100, 1_000))
    peak = {"100": few, "1000": many}
    what = "peak memory of streaming statistics, 1,000 triplets / 100"
    rows.append({"model": "organism", "what": what, "ratio": many / few, "bound": "0.9–1.1", "megabytes": peak})
    rows.append(disk_write(50 if quick else 250, 3 if quick else 7))
    if not quick:
        rows.append(kills(30))
    return rows


def main(
    quick: Annotated[bool, typer.Option("--quick", help="organism only, fewer repeats.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Only a large random model in bfloat16 on the CUDA GPU.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
) -> None:
    """Run the benchmark and print its table."""
    rows = on_gpu(quick) if gpu else on_cpu(quick)
    machine = machine_name("cuda" if gpu else "cpu")
    table = Table(title=f"Capture, ratios of medians ({machine})")
    for heading in ("model", "what / against what", "ratio", "wanted"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row["model"], row["what"], f"{row['ratio']:.2f}", row["bound"])
    Console(width=140).print(table)
    if json_file:
        json_file.write_text(json.dumps({"format": 1, "machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
