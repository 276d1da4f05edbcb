"""A model in deployment, with and without a replacement's gates: in vLLM, or by transformers with a static cache."""

from __future__ import annotations

import copy
import importlib.metadata
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from _models import random_psr
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

import psr_lens as psr
from psr_lens.replacement.attach_to_transformers import LAYOUTS
from psr_lens.serving.gates import Gate

BLOCK: Final = 32
"""Tokens in a block of vLLM's KV cache: the smallest that a CPU takes."""
ALPHA: Final = 0.1
"""Small: what is steered stays ordinary text. A gate costs the same at any strength but 0."""
NAME: Final = "served"
RANK: Final = 4


class Kind(NamedTuple):
    """What a request is."""

    instructed: bool = False
    """Whether the instruction stands before the question."""
    cached: bool = False
    """Whether what the prefix cache has of the instruction is used."""
    gated: bool = False
    """Whether the model has gates."""
    steered: bool = False


KINDS: Final = {
    "none": Kind(),
    "none, gates": Kind(gated=True),
    "PSR": Kind(gated=True, steered=True),
    "prompt": Kind(instructed=True),
    "prompt, cached": Kind(instructed=True, cached=True),
}


class Run(NamedTuple):
    """Requests that arrived together."""

    first: float
    """Seconds to the first token, mean over the requests."""
    whole: float
    """Seconds to the last token of the last request."""
    first_cpu: float
    """CPU seconds until all requests have their first token."""
    whole_cpu: float
    blocks: float | None
    """Most blocks of the KV cache in use at a time, per request; None without blocks."""
    answers: Sequence[Sequence[int]] = ()
    """The tokens, which are not saved."""


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Bytes of a token's keys and values in all layers, from a transformers config."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * dtype.itemsize)


def versions(*packages: str) -> str:
    """Those of the packages that are installed, each with its version."""
    found = {each.metadata["Name"].lower(): each.version for each in importlib.metadata.distributions()}
    return ", ".join(f"{name} {found[name]}" for name in packages if name in found)


def random_psr_for(folder: Path) -> psr.Replacement:
    """Random gates of rank 4 after every layer of the model in a folder."""
    config = AutoConfig.from_pretrained(folder)
    sizes = {"n_layers": config.num_hidden_layers, "d_model": config.hidden_size}
    return random_psr(*sizes.values(), RANK, sizes)


def engine_of(
    folder: Path, artifact: Path | None, dtype: torch.dtype, *, tokens: int, requests: int, kv_bytes: int, **settings: Any
) -> Any:
    """An engine of vLLM's in this process, compiled.

    Args:
        folder: The model.
        artifact: A replacement, which the engine serves as `NAME`; None for an engine without gates.
        dtype: Type of the weights and of the KV cache.
        tokens: Most tokens of a prompt and its answer.
        requests: Most requests at a time.
        kv_bytes: Size of the KV cache.
        settings: Further settings of the engine.
    """
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    from vllm import LLM

    if artifact is not None:
        settings["additional_config"] = {"psr": {NAME: str(artifact)}}
    return LLM(
        str(folder),
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=tokens,
        max_num_seqs=requests,
        seed=0,
        block_size=BLOCK,
        kv_cache_memory_bytes=kv_bytes,
        **settings,
    )


class ByVLLM:
    """Two engines in this process, one of them with gates; greedy answers, whose ends are ignored."""

    def __init__(self, folder: Path, artifact: Path, dtype: torch.dtype, *, tokens: int, requests: int, kv_bytes: int) -> None:
        """Start the engines.

        Args:
            folder: The model.
            artifact: The replacement.
            dtype: Type of the weights and of the KV cache.
            tokens: Most tokens of a prompt and its answer.
            requests: Most requests at a time.
            kv_bytes: Size of each engine's KV cache.
        """
        sizes = {"tokens": tokens, "requests": requests, "kv_bytes": kv_bytes}
        self.llms = [engine_of(folder, each, dtype, **sizes, enable_prefix_caching=True) for each in (None, artifact)]

    def job(self, kind: Kind, instruction: Sequence[int], new: int) -> Callable[[Sequence[Sequence[int]]], Run]:
        """What answers one question a request; with the instruction in the prefix cache, if that is used."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0,
            max_tokens=new,
            ignore_eos=True,
            skip_reading_prefix_cache=not kind.cached,
            extra_args={"psr": NAME, "psr_alpha": ALPHA} if kind.steered else None,
        )
        engine = self.llms[kind.gated].llm_engine
        blocks = engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
        warm = False

        def run(questions: Sequence[Sequence[int]]) -> Run:
            nonlocal warm
            prompts = [{"prompt_token_ids": [*(instruction if kind.instructed else ()), *ids]} for ids in questions]
            first: dict[str, float] = {}
            found: dict[str, int] = {}
            answers: dict[str, Sequence[int]] = {}
            free = least = blocks.get_num_free_blocks()
            first_cpu = 0.0
            began, began_cpu = time.perf_counter(), time.process_time()
            for index, prompt in enumerate(prompts):
                engine.add_request(str(index), prompt, params)
            while engine.has_unfinished_requests():
                for answer in engine.step():
                    first.setdefault(answer.request_id, time.perf_counter() - began)
                    found[answer.request_id] = answer.num_cached_tokens
                    answers[answer.request_id] = answer.outputs[0].token_ids
                least = min(least, blocks.get_num_free_blocks())
                if not first_cpu and len(first) == len(prompts):
                    first_cpu = time.process_time() - began_cpu
            ended, ended_cpu = time.perf_counter(), time.process_time()
            wanted = len(instruction) // BLOCK * BLOCK if kind.cached else 0
            if set(found.values()) != {wanted} and (warm or not kind.cached):
                raise RuntimeError(f"{kind}: found {found} tokens in the prefix cache, expected {wanted}")
            warm = True
            mean, used = sum(first.values()) / len(first), (free - least) / len(prompts)
            said = [answers[str(index)] for index in range(len(prompts))]
            return Run(mean, ended - began, first_cpu, ended_cpu - began_cpu, used, said)

        return run


class ByTransformers:
    """Two models, one of them with gates; the requests are one batch, whose cache has as many tokens as are needed."""

    def __init__(self, folder: Path, artifact: Path, dtype: torch.dtype, *, device: str, compiled: bool) -> None:
        """Load the models.

        Args:
            folder: The model.
            artifact: The replacement, with sites after layers alone.
            dtype: Type of the weights and of the KV cache.
            device: Where they are.
            compiled: Whether steps after the first token are compiled, on a GPU with CUDA graphs.
        """
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().to(device)
        gated = copy.deepcopy(plain)
        self.models, self.device, self.compiled = [plain, gated], device, compiled
        self.strengths = torch.zeros(2**15, 1, device=device)
        layers = gated.get_submodule(LAYOUTS[type(gated).__name__].layers)
        for hook, site in psr.Replacement.load(artifact).sites.items():
            layer = layers[int(hook.split(".")[1])]
            layer.psr_gate = Gate([(0, site)], self.strengths, torch.device(device))
            layer.register_forward_hook(_steered)

    def job(self, kind: Kind, instruction: Sequence[int], new: int) -> Callable[[Sequence[Sequence[int]]], Run]:
        """What answers one question a request; with the instruction in the cache already, if that is used."""
        model = self.models[kind.gated]
        if self.compiled:
            torch._dynamo.reset()  # torch stops compiling after a number of shapes
        step = torch.compile(model, mode="reduce-overhead") if self.compiled else model
        before = list(instruction) if kind.instructed else []
        caches: dict[int, StaticCache] = {}

        def cache_of(requests: int, tokens: int) -> StaticCache:
            if requests not in caches:
                caches[requests] = StaticCache(config=model.config, max_cache_len=tokens)
                if kind.cached:
                    ids = torch.tensor([before] * requests, device=self.device)
                    model(input_ids=ids, past_key_values=caches[requests], logits_to_keep=1)
            for layer in caches[requests].layers:
                layer.cumulative_length.fill_(len(before) if kind.cached else 0)
            return caches[requests]

        @torch.no_grad()
        def run(questions: Sequence[Sequence[int]]) -> Run:
            requests, length = len(questions), len(before) + len(questions[0])
            cache = cache_of(requests, length + new)
            ids = torch.tensor([[*([] if kind.cached else before), *each] for each in questions], device=self.device)
            if kind.gated:
                self.strengths.zero_()
                self.strengths[: ids.numel()].view(ids.shape)[:, -1] = ALPHA * kind.steered
            self.wait()
            began, began_cpu = time.perf_counter(), time.process_time()
            token = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
            self.wait()
            first, first_cpu = time.perf_counter() - began, time.process_time() - began_cpu
            self.strengths[:requests] = ALPHA * kind.steered
            answers = [token]
            for _ in range(new - 1):
                answers.append(step(input_ids=answers[-1], past_key_values=cache).logits[:, -1].argmax(-1, keepdim=True))
            self.wait()
            whole, whole_cpu = time.perf_counter() - began, time.process_time() - began_cpu
            return Run(first, whole, first_cpu, whole_cpu, None, torch.cat(answers, -1).tolist())

        return run

    def wait(self) -> None:
        """Until the GPU has done what it was told."""
        if self.device != "cpu":
            torch.cuda.synchronize()


def _steered(layer: Any, _inputs: Any, output: Any) -> Any:
    hidden = output[0] if isinstance(output, tuple) else output
    rows = hidden.flatten(0, 1)
    changed = (rows.float() + layer.psr_gate(rows)).to(hidden.dtype).view_as(hidden)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed
