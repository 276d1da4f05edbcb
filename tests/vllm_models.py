"""Tiny random models for vLLM, whose kernels need wider heads than those of the other tests, and engines that serve replacements."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from architectures import save_tiny

from psr_lens.replacement import Replacement, Site, SteeringPlan

WIDTH, CONTEXT, BLOCK = 128, 96, 32
HEADS = {"head_dim": 32}
SETTINGS = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": HEADS,
    "gemma2": HEADS | {"query_pre_attn_scalar": 32, "attn_logit_softcapping": 1.0},
    "gemma3": HEADS | {"query_pre_attn_scalar": 32},
    "phi3": {},
    "gpt2": {},
    "gpt-neox": {},
    "olmo2": {},
    "stablelm": {},
}
"""Families, with what makes their heads 32 wide, and the cap on Gemma-2's attention scores smaller than most of them."""


SERVED = [family for family in SETTINGS if family != "stablelm"]
"""Families that the plugin takes."""


class Tiny(NamedTuple):
    """A model and what steers it, as transformers has them and as folders."""

    folder: Path
    hf: Any
    steering: dict[str, Replacement | SteeringPlan]
    saved: dict[str, str]

    def greedy(self, ids: list[int], name: str | None, alpha: float, count: int, start: int | None = None) -> list[int]:
        """Greedy tokens of plain transformers, with `attach`."""
        given = torch.tensor([ids])
        settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        if name is None:
            found = self.hf.generate(given, attention_mask=torch.ones_like(given), **settings)
        else:
            with self.steering[name].attach(self.hf, alpha, start=start):
                found = self.hf.generate(given, attention_mask=torch.ones_like(given), **settings)
        return found[0, len(ids) :].tolist()


def _steering(config: Any) -> dict[str, Replacement | SteeringPlan]:
    """Every rule, kind of hook point and span."""
    generator = torch.Generator().manual_seed(0)
    size = 1.0 if config.model_type.startswith("gemma") else 0.15  # Gemma multiplies its embeddings, so that its stream is longer
    heads, layers, width = config.num_attention_heads, config.num_hidden_layers, config.hidden_size
    wide = getattr(config, "head_dim", None) or width // heads

    def site(kind: str, rule: str) -> Site:
        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*((heads,) if kind == "attn.hook_z" else ()), *shape, generator=generator) * size

        across = wide if kind == "attn.hook_z" else width
        return Site(draw(2, across), draw(2, across), draw(2), rule)

    def made(kind: str, *rules: str, span: str = "R", **fields: Any) -> Replacement:
        sites = {f"blocks.{layer}.{kind}": site(kind, rules[layer % len(rules)]) for layer in range(layers)}
        return Replacement(sites, span, "random", {"n_layers": layers, "d_model": width}, **fields)

    found: dict[str, Replacement | SteeringPlan] = {
        "post": made("hook_resid_post", "relu"),
        "rules": made("hook_resid_post", "sigmoid", "projection", "constant", span="QR", question_start=2),
        "attention": made("hook_attn_out", "relu", "linear"),
        "mlp": made("hook_mlp_out", "relu", offset=0.3),
        "heads": made("attn.hook_z", "relu", "constant"),
        "last": made("hook_resid_post", "relu", tokens="last"),
    }
    return found | {"plan": found["post"] - 0.5 * found["mlp"]}


def replacement_at(config: Any, kind: str, **said: Any) -> Replacement:
    """A replacement in the first layer, which says of its model what `said` has."""
    width = said.get("d_model", config.hidden_size)
    head, width = ((config.num_attention_heads,), 32) if kind == "attn.hook_q" else ((), width)
    ones, others = torch.ones(*head, 1, width), torch.ones(*head, 1, width)
    return Replacement({f"blocks.0.{kind}": Site(ones, others, torch.ones(*head, 1), "relu")}, "R", "random", said)


def tiny_model(family: str, root: Path) -> Tiny:
    """A random model of a family of `SETTINGS`, and what steers it, saved in the folder."""
    folder = save_tiny(family, root / "model", width=WIDTH, settings=SETTINGS[family])
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    steering = _steering(hf.config)
    return Tiny(folder, hf, steering, {name: str(each.save(root / name)) for name, each in steering.items()})


@contextmanager
def engine_of(tiny: Tiny, **settings: Any) -> Iterator[Any]:
    """A `vllm.LLM` that serves the model's replacements, in this process."""
    with _engine(str(tiny.folder), tiny.saved, **settings) as llm:
        yield llm


@contextmanager
def _engine(folder: str, saved: dict[str, str], **settings: Any) -> Iterator[Any]:
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {"enforce_eager": True, "max_num_batched_tokens": 40, "additional_config": {"psr": saved}} | settings
    llm = LLM(folder, dtype="float32", max_model_len=CONTEXT, max_num_seqs=8, block_size=BLOCK, seed=0, **settings)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def with_drafts(
    folder: str, saved: dict[str, str], prompts: list[list[int]], names: Sequence[str], count: int
) -> tuple[list[list[int]], int]:
    """Greedy tokens of an engine that drafts, and how many drafts it accepted.

    For a process of its own: what vLLM compiles for drafts keeps every later engine of the same process from starting.
    """
    from vllm import SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler

    accepted: list[int] = []
    original = Scheduler.make_spec_decoding_stats

    def counted(*given: Any, **named: Any) -> Any:
        accepted.append(named["num_accepted_tokens"])
        return original(*given, **named)

    Scheduler.make_spec_decoding_stats = counted
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    params = [
        SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, extra_args={"psr": name, "psr_alpha": 1.0})
        for name in names
    ]
    with _engine(folder, saved, speculative_config=drafts) as llm:
        found = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [list(each.outputs[0].token_ids) for each in found], sum(accepted)
