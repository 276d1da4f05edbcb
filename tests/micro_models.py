"""Random models of two layers and sixteen dimensions, of every architecture that `attach` takes.

Weights are large, so that what a layer does shows in the logits. Where each hook point lies is written out here by hand.
"""

from typing import Any, Final, NamedTuple

import torch
import transformers

from psr_lens.replacement import Replacement, Site

VOCABULARY: Final = 48
LAYERS: Final = 2
HEADS: Final = 2
WIDTH: Final = 16
PAD: Final = 0


class Points(NamedTuple):
    """Paths, inside a model, of what TransformerLens's hook points correspond to; `{}` is the layer."""

    resid_post: str
    attn_out: str
    mlp_out: str
    z: str
    """The module whose input it is."""


_LLAMA: Final = Points("model.layers.{}", "model.layers.{}.self_attn", "model.layers.{}.mlp", "model.layers.{}.self_attn.o_proj")
_POST: Final = Points(
    "model.layers.{}",
    "model.layers.{}.post_attention_layernorm",
    "model.layers.{}.post_feedforward_layernorm",
    "model.layers.{}.self_attn.o_proj",
)
_MOE: Final = {"num_local_experts": 2, "num_experts_per_tok": 1}
_WINDOW: Final = {"sliding_window": 6}

ARCHITECTURES: Final[dict[str, tuple[dict[str, Any], Points]]] = {
    "Llama": ({"num_key_value_heads": 1}, _LLAMA),
    "Mistral": (_WINDOW, _LLAMA),
    "Qwen2": ({"num_key_value_heads": 1}, _LLAMA),
    "Qwen3": ({"head_dim": 12}, _LLAMA),
    "Phi3": ({"original_max_position_embeddings": 64}, _LLAMA),
    "Gemma": ({"head_dim": 12}, _LLAMA),
    "Gemma2": (_WINDOW | {"head_dim": 12, "query_pre_attn_scalar": 12}, _POST),
    "Gemma3": (
        _WINDOW | {"head_dim": 12, "query_pre_attn_scalar": 12, "layer_types": ["sliding_attention", "full_attention"]},
        _POST,
    ),
    "Olmo": ({}, _LLAMA),
    "Olmo2": ({}, _POST),
    "Granite": ({"residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0}, _LLAMA),
    "SmolLM3": ({"no_rope_layers": [1, 0]}, _LLAMA),
    "StableLm": ({"use_parallel_residual": True}, _LLAMA),
    "Starcoder2": ({}, _LLAMA),
    "Cohere": ({}, _LLAMA),
    "Cohere2": (_WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}, _LLAMA),
    "Mixtral": (_MOE, _LLAMA),
    "Qwen3Moe": ({"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "head_dim": 8}, _LLAMA),
    "GptOss": (_MOE | _WINDOW | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]}, _LLAMA),
    "Phi": ({}, Points("model.layers.{}", "model.layers.{}.self_attn", "model.layers.{}.mlp", "model.layers.{}.self_attn.dense")),
    "Falcon": (
        {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True},
        Points(
            "transformer.h.{}", "transformer.h.{}.self_attention", "transformer.h.{}.mlp", "transformer.h.{}.self_attention.dense"
        ),
    ),
    "GPT2": ({}, Points("transformer.h.{}", "transformer.h.{}.attn", "transformer.h.{}.mlp", "transformer.h.{}.attn.c_proj")),
    "GPTJ": (
        {"rotary_dim": 4},
        Points("transformer.h.{}", "transformer.h.{}.attn", "transformer.h.{}.mlp", "transformer.h.{}.attn.out_proj"),
    ),
    "GPTNeoX": (
        {"use_parallel_residual": True},
        Points(
            "gpt_neox.layers.{}", "gpt_neox.layers.{}.attention", "gpt_neox.layers.{}.mlp", "gpt_neox.layers.{}.attention.dense"
        ),
    ),
}
"""Own settings and hook points by the beginning of the names of transformers' classes."""

_OLD_NAMES: Final = ("GPT2", "GPTJ")


def micro_model(kind: str, seed: int = 0) -> Any:
    """A random model of an architecture."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 64,
    }
    if kind in _OLD_NAMES:
        sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
    own = ARCHITECTURES[kind][0]
    config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(kind, f"{kind}Config"))
    ids = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
    settings = config(**{"vocab_size": VOCABULARY, **sizes, **ids, **own, "attn_implementation": "eager"})
    model = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM"))(settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(mean=1.0 if is_norm and not kind.startswith("Gemma") else 0.0, std=0.12 if is_norm else 0.3)
    model.generation_config.eos_token_id = None  # every answer is as long as the others
    return model.eval().requires_grad_(False)


def micro_replacement(**settings: Any) -> Replacement:
    """A random replacement at the last layer of a micro model; `settings` are those of `Replacement`."""
    generator = torch.Generator().manual_seed(0)
    z, w, b = (torch.randn(*shape, generator=generator) for shape in ((1, 16), (1, 16), (1,)))
    return Replacement({"blocks.1.hook_resid_post": Site(z, w, b, "relu")}, settings.pop("span", "R"), "drawn", {}, **settings)
