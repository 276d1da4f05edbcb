"""The one builder of tiny models: a random one of any architecture of the matrix, saved to disk as a user's folder would be."""

import warnings
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


_GROUPED: Final = {"num_key_value_heads": 2}
_WIDE_HEADS: Final = {"num_key_value_heads": 2, "head_dim": 12}
_GEMMA: Final = _WIDE_HEADS | {"sliding_window": WINDOW, "query_pre_attn_scalar": 12}
_LAYER_TYPES: Final = ["sliding_attention", "full_attention", "sliding_attention"]

FAMILIES: Final = {
    "llama": Architecture("Llama", "Llama", {"num_key_value_heads": 4}),
    "llama-gqa": Architecture("Llama, grouped queries", "Llama", _GROUPED),
    "gpt2": Architecture("GPT-2", "GPT2", {}),  # its default dropout of 0.1 stays: only evaluation mode turns it off
    "gpt-neox": Architecture("GPT-NeoX (Pythia)", "GPTNeoX", {"use_parallel_residual": True}),
    "qwen2": Architecture("Qwen2", "Qwen2", _GROUPED),
    "qwen3": Architecture("Qwen3", "Qwen3", _WIDE_HEADS),
    "gemma2": Architecture("Gemma-2", "Gemma2", _GEMMA, in_hooked_transformer=False),
    "gemma3": Architecture("Gemma-3 (text)", "Gemma3", _GEMMA | {"layer_types": _LAYER_TYPES}, in_hooked_transformer=False),
    "mistral": Architecture("Mistral", "Mistral", _GROUPED | {"sliding_window": WINDOW}),
    "phi3": Architecture("Phi-3", "Phi3", {"num_key_value_heads": 4, "original_max_position_embeddings": CONTEXT}),
    "olmo2": Architecture("OLMo-2", "Olmo2", {"num_key_value_heads": 4}, in_hooked_transformer=False),
}
"""All that can be made; norms behind the blocks, attention beside the MLP and heads not d_model / n_heads wide are among them."""

CLASSES: Final = {"gemma3": "Gemma3ForCausalLM", "gpt2": "GPT2LMHeadModel"}
CONFIGS: Final = {"gemma3": "Gemma3TextConfig"}


def save_tiny(family: str, folder: Path, *, layers: int = LAYERS, width: int = WIDTH, seed: int = 0) -> Path:
    """A random model with large weights and uneven norms, so that no step of a forward pass can be left out unnoticed."""
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
    settings = config(vocab_size=len(tokenizer), **ids, **sizes, **FAMILIES[family].own)
    model = getattr(transformers, CLASSES.get(family, f"{kind}ForCausalLM"))(settings)
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
