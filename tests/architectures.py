"""The one builder of tiny models: a random one of any architecture of the matrix, saved to disk as a user's folder would be."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import transformers

from psr_lens.models import has_hooked_transformer
from psr_lens.organism.tokenizer import build_tokenizer

LAYERS, WIDTH, CONTEXT = 3, 32, 96
WINDOW = 24
"""Sliding windows are shorter than the sequences of the tests, so that it shows where one is left out."""


class Architecture(NamedTuple):
    """How a family of models is made small."""

    title: str
    """What its users call it."""
    kind: str
    """What its classes' names begin with."""
    own: dict[str, Any]
    """Settings beside those that all share."""
    in_hooked_transformer: bool = True
    """Whether `HookedTransformer` can take it from a folder."""
    variants: dict[str, dict[str, Any]] = {}  # noqa: RUF012 (read only)
    """What models of the family also have, by what it is called: position embeddings and biases, as settings."""
    refused: tuple[str, ...] = ()
    """Variants that no class of TransformerLens computes right, or only that of 4.x."""
    in_attach: bool = True
    """Whether `attach` knows its modules."""
    since: int = 3
    """The first generation of TransformerLens whose bridge computes it right."""


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    """A kind of RoPE, as a setting; contexts were stretched by 4 where the kind has an original length."""
    original = {} if kind in ("default", "linear") else {"original_max_position_embeddings": CONTEXT // 4}
    factor = {} if kind in ("default", "longrope") else {"factor": 4.0}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **factor, **original, **settings}}


def longrope(pairs: int) -> dict[str, Any]:
    """Phi-3's RoPE, with factors for short and for long sequences, and its place for the original length."""
    factors = {"short_factor": [1.0 + 0.1 * pair for pair in range(pairs)], "long_factor": [2.0 + pair for pair in range(pairs)]}
    return rope("longrope", **factors) | {"original_max_position_embeddings": CONTEXT // 4}


_GROUPED: Final = {"num_key_value_heads": 2}
_WIDE_HEADS: Final = {"num_key_value_heads": 2, "head_dim": 12}
_GEMMA: Final = _WIDE_HEADS | {"sliding_window": WINDOW, "query_pre_attn_scalar": 12}
_LAYER_TYPES: Final = ["sliding_attention", "full_attention", "sliding_attention"]
_EXPERTS: Final = {"num_experts_per_tok": 2}
_LLAMA_3: Final = rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0)
_YARN: Final = {"YaRN": rope("yarn")}
_BIAS: Final = {"attention bias": {"attention_bias": True}}

FAMILIES: Final = {
    "llama": Architecture(
        "Llama",
        "Llama",
        {"num_key_value_heads": 4},
        variants={"linear RoPE": rope("linear"), "dynamic RoPE": rope("dynamic"), **_BIAS, "MLP bias": {"mlp_bias": True}},
    ),
    "llama-gqa": Architecture(
        "Llama, grouped queries",
        "Llama",
        _GROUPED,
        variants={"Llama-3 RoPE": _LLAMA_3, **_YARN, "wide heads": {"head_dim": 12}, "tied": {"tie_word_embeddings": True}},
    ),
    "gpt2": Architecture(  # its default dropout of 0.1 stays: only evaluation mode turns it off
        "GPT-2", "GPT2", {}, variants={"wider MLP": {"n_inner": 40}, "scaled attention": {"scale_attn_by_inverse_layer_idx": True}}
    ),
    "gpt-neox": Architecture(
        "GPT-NeoX (Pythia)",
        "GPTNeoX",
        {"use_parallel_residual": True},
        variants={"sequential": {"use_parallel_residual": False}, "no attention bias": {"attention_bias": False}},
        refused=("no attention bias",),
    ),
    "qwen2": Architecture(
        "Qwen2",
        "Qwen2",
        _GROUPED,
        variants={**_YARN, "windows": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}},
    ),
    "qwen3": Architecture("Qwen3", "Qwen3", _WIDE_HEADS, variants={**_YARN, **_BIAS}),
    "qwen3-moe": Architecture(
        "Qwen3-MoE",
        "Qwen3Moe",
        _WIDE_HEADS | _EXPERTS | {"num_experts": 4, "moe_intermediate_size": 24},
        in_hooked_transformer=False,
        variants={**_YARN, "dense layer": {"mlp_only_layers": [1]}},
    ),
    "gemma2": Architecture("Gemma-2", "Gemma2", _GEMMA, in_hooked_transformer=False),
    "gemma3": Architecture(
        "Gemma-3 (text)",
        "Gemma3",
        _GEMMA | {"layer_types": _LAYER_TYPES},
        in_hooked_transformer=False,
        variants={
            "linear RoPE in full layers": {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                }
            }
        },
    ),
    "mistral": Architecture(
        "Mistral",
        "Mistral",
        _GROUPED | {"sliding_window": WINDOW},
        variants={"no window": {"sliding_window": None}, "wide heads": {"head_dim": 12}, **_YARN},
    ),
    "mixtral": Architecture("Mixtral", "Mixtral", _GROUPED | _EXPERTS | {"num_local_experts": 4}),
    "phi3": Architecture(
        "Phi-3",
        "Phi3",
        {"num_key_value_heads": 4, "original_max_position_embeddings": CONTEXT},
        variants={"LongRoPE": longrope(4), "partial RoPE": {"partial_rotary_factor": 0.5}, "window": {"sliding_window": WINDOW}},
    ),
    "olmo2": Architecture("OLMo-2", "Olmo2", {"num_key_value_heads": 4}, in_hooked_transformer=False, variants=_BIAS),
    "granite": Architecture(
        "Granite",
        "Granite",
        _GROUPED
        | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2, "logits_scaling": 2.0}
        | {"tie_word_embeddings": True},
        in_hooked_transformer=False,
        variants=_BIAS,
    ),
    "smollm3": Architecture(
        "SmolLM3",
        "SmolLM3",
        _GROUPED | {"no_rope_layers": [1, 1, 0]},
        in_hooked_transformer=False,
        variants={**_YARN, "RoPE everywhere": {"no_rope_layers": [1, 1, 1]}},
    ),
    "stablelm": Architecture(
        "StableLM",
        "StableLm",
        {"num_key_value_heads": 4, "partial_rotary_factor": 0.25, "use_qkv_bias": True},
        in_hooked_transformer=False,
        variants={"no bias": {"use_qkv_bias": False}, "parallel": {"use_parallel_residual": True, "qk_layernorm": True}},
    ),
    "falcon": Architecture(
        "Falcon",
        "Falcon",
        {"multi_query": True, "parallel_attn": True, "bias": False},
        in_hooked_transformer=False,
        variants={
            "grouped queries": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "ALiBi": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
        },
        refused=("grouped queries", *(("ALiBi",) if has_hooked_transformer() else ())),
    ),
    "gpt-oss": Architecture(
        "GPT-OSS",
        "GptOss",
        _WIDE_HEADS
        | _EXPERTS
        | {"num_local_experts": 4, "sliding_window": WINDOW, "layer_types": _LAYER_TYPES}
        | rope("yarn", beta_fast=32.0, beta_slow=1.0, truncate=False),
    ),
    "cohere": Architecture(
        "Cohere (Command R)",
        "Cohere",
        _GROUPED,
        in_hooked_transformer=False,
        variants={"normalised queries": {"use_qk_norm": True}},
        since=4,
    ),
    "cohere2": Architecture(
        "Cohere2 (Command R7B)",
        "Cohere2",
        _GROUPED | {"sliding_window": WINDOW, "layer_types": _LAYER_TYPES},
        in_hooked_transformer=False,
        since=4,
    ),
    "qwen3-next": Architecture(
        "Qwen3-Next",
        "Qwen3Next",
        _GROUPED
        | _EXPERTS
        | {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        | {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        in_hooked_transformer=False,
        variants={"dense layer": {"mlp_only_layers": [1]}},
    ),
    "mamba": Architecture(
        "Mamba",
        "Mamba",
        {"state_size": 8, "intermediate_size": 2 * WIDTH},
        in_hooked_transformer=False,
        in_attach=False,
    ),
}
"""All that can be made; norms behind the blocks, attention beside the MLP and heads not d_model / n_heads wide are among them."""

TAKEN: Final = tuple(family for family, found in FAMILIES.items() if found.since == 3 or not has_hooked_transformer())
"""Those that the installed TransformerLens takes."""

CLASSES: Final = {"gemma3": "Gemma3ForCausalLM", "gpt2": "GPT2LMHeadModel"}
CONFIGS: Final = {"gemma3": "Gemma3TextConfig"}


def save_tiny(
    family: str, folder: Path, *, layers: int = LAYERS, width: int = WIDTH, seed: int = 0, settings: Mapping[str, Any] | None = None
) -> Path:
    """A random model with large weights and uneven norms, so that no step of a forward pass can be left out unnoticed.

    `settings` are added to the family's own, e.g. those of a variant.
    """
    torch.manual_seed(seed)
    tokenizer, kind = build_tokenizer(), FAMILIES[family].kind
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    if family == "gpt2":
        sizes = {"n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": CONTEXT, "n_ctx": CONTEXT}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = getattr(transformers, CONFIGS.get(family, f"{kind}Config"))
    own = FAMILIES[family].own | dict(settings or {})
    made = config(**{"vocab_size": len(tokenizer), **ids, **sizes, **own})
    model = getattr(transformers, CLASSES.get(family, f"{kind}ForCausalLM"))(made)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm_weight = parameter.ndim == 1 and name.endswith("weight")
            multiplied = is_norm_weight and not kind.startswith("Gemma")  # whose norms multiply with 1 + weight
            parameter.normal_(mean=1.0 if multiplied else 0.0, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hooked_gemma2() -> Any:
    """Gemma-2's shape as a `HookedTransformer`, which takes no such folder: made from a configuration; None in TransformerLens 4."""
    if not has_hooked_transformer():
        return None
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    tokenizer = build_tokenizer()
    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_ctx=CONTEXT,
        d_head=12,
        n_heads=4,
        n_key_value_heads=2,
        d_mlp=48,
        d_vocab=len(tokenizer),
        act_fn="gelu_pytorch_tanh",
        gated_mlp=True,
        normalization_type="RMS",
        use_normalization_before_and_after=True,
        positional_embedding_type="rotary",
        rotary_dim=12,
        attn_scores_soft_cap=20.0,
        use_local_attn=True,
        attn_types=["global", "local", "global"],
        window_size=24,
        seed=0,
        device="cpu",
        model_name="hooked-gemma2",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.split(".")[-1].startswith("W_"):
                parameter.normal_(std=0.2, generator=generator)
            elif name.endswith(".w"):
                parameter.normal_(mean=1.0, std=0.2, generator=generator)
    model.tokenizer = tokenizer
    return model.eval().requires_grad_(False)
