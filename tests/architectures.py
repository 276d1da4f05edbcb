"""Tiny random models of architectures that the other tests do without: norms behind the blocks, and attention beside the MLP."""

import warnings
from pathlib import Path
from typing import Any

import torch
from helpers import CONTEXT, LAYERS, WIDTH
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
)

from psr_lens.models import has_hooked_transformer
from psr_lens.organism.tokenizer import build_tokenizer

ARCHITECTURES = ("gemma2", "gpt-neox", "olmo2")


def save_architecture(family: str, folder: Path) -> Path:
    """A folder to load, with large weights and uneven norms; heads of Gemma-2 are not d_model / n_heads wide, and share values."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "gemma2":
        own = {"num_key_value_heads": 2, "head_dim": 12, "sliding_window": 24, "query_pre_attn_scalar": 12}
        model: Any = Gemma2ForCausalLM(Gemma2Config(**sizes, **own))
    elif family == "olmo2":
        model = Olmo2ForCausalLM(Olmo2Config(**sizes))
    else:
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, use_parallel_residual=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            multiplied = (
                parameter.ndim == 1 and name.endswith("weight") and family != "gemma2"
            )  # its norms multiply with 1 + weight
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
