"""What several benchmarks share: random models of real sizes, fair timing, and the machine's name."""

from __future__ import annotations

import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import typer
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

import psr_lens as psr
from psr_lens._utils.numbers import counted
from psr_lens.models import HookedModel, fingerprint
from psr_lens.prompts import PromptPair, Triplet
from psr_lens.replacement import Replacement, Site

GPT2_SMALL = {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1_024, "vocab_size": 50_257}
LARGE = {"n_layer": 24, "n_embd": 2_048, "n_head": 16, "n_positions": 1_024, "vocab_size": 50_257}
"""For GPUs."""


@contextmanager
def random_gpt2_folder(sizes: dict[str, int], *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Iterator[Path]:
    """The folder of a GPT-2 with random weights (seed 0), which is removed at the end of a `with` block."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / f"random {sizes['n_layer']} × {sizes['n_embd']}"
        with torch.device(device):
            GPT2LMHeadModel(GPT2Config(**sizes)).to(dtype).save_pretrained(folder)
        yield folder


def random_gpt2(sizes: dict[str, int], *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> HookedModel:
    """A GPT-2 with random weights (seed 0), saved and loaded as a user's own folder is."""
    with random_gpt2_folder(sizes, device=device, dtype=dtype) as folder:
        model = psr.load_model(folder, device=device, dtype=dtype)
    model.tokenizer = psr.load_model("organism-gpt2").tokenizer  # a store's rows have strings; which ones costs nothing
    return model


def a_psr(model: HookedModel, rank: int) -> Replacement:
    """Random probes and directions after every layer (seed 0), small enough to leave the numbers finite."""
    return random_psr(model.cfg.n_layers, model.cfg.d_model, rank, fingerprint(model))


def random_psr(layers: int, width: int, rank: int, made_for: dict[str, Any]) -> Replacement:
    """The same for a model that is not loaded."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.02

    sites = {
        f"blocks.{layer}.hook_resid_post": Site(draw(rank, width), draw(rank, width), draw(rank), "relu") for layer in range(layers)
    }
    return Replacement(sites, "R", "A-PSR", made_for)


def random_triplets(vocabulary: int, count: int, seed: int = 0) -> list[Triplet]:
    """Random token ids, of the lengths of a chat: a question of 20 to 60 tokens, an instruction of 8 to 16, a response of 40 to 120."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(draw.randint(low, high)))

    triplets = []
    for _ in range(count):
        question = ids(20, 60)
        triplets.append(Triplet(PromptPair("", "", question, (*ids(8, 16), *question), len(question)), ids(40, 120), ""))
    return triplets


def check_gpu() -> None:
    """Refuse --gpu where there is none."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("got --gpu, expected a CUDA device that torch has here. Leave it out.")


def large_on_gpu() -> HookedModel:
    """The large random model in bfloat16 on the CUDA GPU."""
    check_gpu()
    return random_gpt2(LARGE, device="cuda", dtype=torch.bfloat16)


class Times(NamedTuple):
    """What each turn of one job took."""

    wall: list[float]
    """Seconds."""
    cpu: list[float]
    """Seconds of this process's own computing, which other processes on a busy machine do not count in."""


def in_turns(jobs: dict[str, Callable[[], object]], repeats: int, label: str) -> dict[str, Times]:
    """Times of each job and repeat; the jobs take turns, so that a busy machine slows all of them."""
    times: dict[str, Times] = {name: Times([], []) for name in jobs}
    for job in jobs.values():
        job()
    for turn in tqdm(range(repeats), desc=label, leave=False):
        for name in list(jobs)[:: 1 if turn % 2 == 0 else -1]:
            began, began_cpu = time.perf_counter(), time.process_time()
            jobs[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].wall.append(time.perf_counter() - began)
            times[name].cpu.append(time.process_time() - began_cpu)
    return times


def side_by_side(jobs: dict[str, Callable[[], object]], repeats: int, label: str) -> dict[str, float]:
    """Median seconds of each job."""
    return {name: statistics.median(times.wall) for name, times in in_turns(jobs, repeats, label).items()}


def machine(device: str = "cpu") -> str:
    """What a measurement was made on."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {counted(torch.get_num_threads(), 'thread')}"
    return f"{name}, torch {torch.__version__}"
