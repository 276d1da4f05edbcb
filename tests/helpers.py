"""Small things that many tests make: tiny models, random triplets and replacements, and a look at a model's state."""

import importlib
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from architectures import CONTEXT as CONTEXT
from architectures import LAYERS as LAYERS
from architectures import WIDTH as WIDTH
from architectures import save_tiny as save_tiny

import psr_lens as psr
from psr_lens.activations.paired_passes import collect
from psr_lens.activations.teacher_forced_pass import PassSteering
from psr_lens.models import fingerprint, has_hooked_transformer
from psr_lens.prompts import Span
from psr_lens.replacement import Replacement, Site

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ("llama", "llama-gqa", "gpt2")
ORGANISMS = ("organism", "organism-gpt2")
BACKENDS = ("hooked_transformer", "bridge") if has_hooked_transformer() else ("bridge",)
FORK = multiprocessing.get_context("fork")
"""Makes processes that have imported everything already; a new Python would import torch for many seconds."""


@dataclass(frozen=True, repr=False)
class Case:
    """One model under test, and transformers' own reading of the same weights."""

    family: str
    backend: str
    folder: Path
    model: Any
    hf: Any


def pairs_of(model: Any, count: int, *, trait: str = "pirate", seed: int = 0) -> list[psr.PromptPair]:
    """Prompt pairs of unequal lengths."""
    return psr.prompt_pairs(model, psr.organism.questions(count, seed=seed), psr.organism.INSTRUCTIONS[trait])


def random_triplets(model: Any, count: int, *, seed: int = 0, longest: int = 10) -> list[psr.Triplet]:
    """Triplets whose responses are random words of random lengths, with random trait scores."""
    rng = random.Random(seed)
    words = range(10, model.cfg.d_vocab)
    return [
        psr.Triplet(pair, tuple(rng.choices(words, k=rng.randint(1, longest))), "", rng.uniform(50, 100))
        for pair in pairs_of(model, count, seed=seed)
    ]


def random_replacement(
    model: Any, *, layers: Sequence[int] | None = None, span: Span = "R", rank: int = 1, seed: int = 0, size: float = 0.5
) -> Replacement:
    """A replacement with random probes and directions that changes every layer visibly."""
    generator = torch.Generator().manual_seed(seed)
    width = model.cfg.d_model

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float32) * size

    sites = {
        f"blocks.{layer}.hook_resid_post": Site(draw(rank, width), draw(rank, width), draw(rank), "relu")
        for layer in (range(model.cfg.n_layers) if layers is None else layers)
    }
    return Replacement(sites, span, "random", fingerprint(model))


def random_site(model: Any, kind: str, *, rank: int = 2, rule: str = "relu", seed: int = 0, size: float = 0.3) -> Site:
    """A random site for a hook point of a kind, `"attn.hook_z"` or any in the residual stream's basis."""
    generator = torch.Generator().manual_seed(seed)
    heads = (model.cfg.n_heads,) if kind == "attn.hook_z" else ()
    width = model.cfg.d_head if heads else model.cfg.d_model

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*heads, *shape, generator=generator, dtype=torch.float32) * size

    return Site(draw(rank, width), draw(rank, width), draw(rank), rule)


def replacement_at(
    model: Any, kind: str, layers: Sequence[int], *, span: Span = "R", tokens: str = "span", **site: Any
) -> Replacement:
    """A replacement with a random site at one kind of hook point; see `random_site`."""
    seed = site.pop("seed", 0)
    sites = {f"blocks.{layer}.{kind}": random_site(model, kind, seed=seed + layer, **site) for layer in layers}
    return Replacement(sites, span, "random", fingerprint(model), tokens=tokens)


def logits_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits of one unpadded sequence, `[position, d_vocab]`."""
    with torch.no_grad():
        return model(torch.tensor([list(ids)]))[0]


def relative_error(model: Any, triplets: Sequence[psr.Triplet], replacement: Replacement) -> float:
    """Σ_l ‖A_{l|AS} − A_{l|PS}‖² / Σ_l ‖A_l − A_{l|PS}‖² over the first layer where the replacement acts and all later ones."""
    first = min(int(name.split(".")[1]) for name in replacement.sites)
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(first, model.cfg.n_layers)]
    wanted, plain = (collect(model, triplets, names, context, replacement.span) for context in ("prompted", "base"))
    found = collect(model, triplets, names, "base", replacement.span, steered=PassSteering(replacement))
    left, whole = (sum(float((each[name] - wanted[name]).square().sum()) for name in names) for each in (found, plain))
    return left / whole


class State(NamedTuple):
    """Everything about a model that the package must put back."""

    weights: dict[str, torch.Tensor]
    gradients: list[bool]
    modes: list[bool]
    hooks: int
    logits: torch.Tensor


def hook_count(model: Any) -> int:
    """How many forward and backward hooks sit on a model's hook points."""
    points = {id(point): point for point in model.hook_dict.values()}
    return sum(len(point.fwd_hooks) + len(point.bwd_hooks) for point in points.values())


def state_of(model: Any) -> State:
    """A copy of a model's state."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    torch.manual_seed(0)  # a model in training mode draws its dropout
    return State(weights, gradients, modes, hook_count(model), logits_of(model, range(10, 20)))


def assert_unchanged(model: Any, before: State) -> None:
    """The model is as `state_of` found it, to the last bit."""
    after = state_of(model)
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)
    assert after.gradients == before.gradients
    assert after.modes == before.modes
    assert after.hooks == before.hooks
    assert torch.equal(after.logits, before.logits)
    assert all(parameter.grad is None for parameter in model.parameters())


def generated(model: Any, prompt: Sequence[int], steps: int, *, cached: bool) -> list[int]:
    """TransformerLens's own generation, greedy."""
    output = model.generate(
        torch.tensor([list(prompt)]),
        max_new_tokens=steps,
        do_sample=False,
        stop_at_eos=False,
        use_past_kv_cache=cached,
        return_type="tokens",
        verbose=False,
    )
    return output[0, len(prompt) :].tolist()


def kill_when(ready: Callable[[], bool], process: BaseProcess, delay: float) -> None:
    """Kill a process some seconds after something has become true; it may have ended by itself, and no wait is longer than a minute."""
    deadline = time.monotonic() + 60
    while not ready() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join(60)


@contextmanager
def benchmark_script(name: str) -> Iterator[ModuleType]:
    """A script of `benchmarks/` as a module, inside a `with` block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module(name)
    for each in (name, "_models", "_divergence", "_instructions", "_numbers", "_deployed", "_deploy_tables", "gap", "screening"):
        sys.modules.pop(each, None)


def as_torchrun_starts_two(target: Callable[[int], Any]) -> list[int | None]:
    """Exit codes of two processes that call `target(rank)`, with the environment that `torchrun` gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def run(rank: int) -> None:
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        os.environ.update(shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        target(rank)

    processes = [FORK.Process(target=run, args=(rank,), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def named(figure: Any, name: str, kind: str | None = None) -> Any:
    """The one trace of a figure with this name, and of this type if one is given."""
    (trace,) = [trace for trace in figure.data if trace.name == name and (kind is None or trace.type == kind)]
    return trace
