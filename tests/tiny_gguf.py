"""A `.gguf` file of a Llama, written as llama.cpp writes one, with a byte-level tokenizer and a chat template."""

from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

TOKENS: Final = ("<s>", "</s>", *sorted(ByteLevel.alphabet()), "th", "the")
TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
NAMES: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def save_gguf(model: Any, path: Path, kind: str) -> Path:
    """Write the weights of a `LlamaForCausalLM` as `kind`, such as `"F32"` or `"Q8_0"`; vectors stay in float32."""
    config = model.config
    made = gguf.GGUFWriter(path, "llama")
    made.add_name("tiny")
    made.add_context_length(config.max_position_embeddings)
    made.add_embedding_length(config.hidden_size)
    made.add_block_count(config.num_hidden_layers)
    made.add_feed_forward_length(config.intermediate_size)
    made.add_head_count(config.num_attention_heads)
    made.add_head_count_kv(config.num_key_value_heads)
    made.add_layer_norm_rms_eps(config.rms_norm_eps)
    made.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    made.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    made.add_vocab_size(len(TOKENS))
    made.add_tokenizer_model("gpt2")
    made.add_tokenizer_pre("gpt-2")
    made.add_token_list(TOKENS)
    made.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 2))
    made.add_token_merges(["t h", "th e"])
    made.add_bos_token_id(0)
    made.add_eos_token_id(1)
    made.add_chat_template(TEMPLATE)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        count = heads.get(name.split(".")[-2])
        numbers = (weight if count is None else _interleaved(weight, count)).numpy()
        wanted = gguf.GGMLQuantizationType[kind if weight.ndim > 1 else "F32"]
        made.add_tensor(_name(name), gguf.quants.quantize(numbers, wanted), raw_dtype=wanted)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def quantised(weight: Tensor, kind: str) -> np.ndarray:
    """The numbers of a weight as such a file keeps them."""
    wanted = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), wanted), wanted)


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    layer = stem.split(".")[2] if stem.startswith("model.layers.") else None
    own = stem.removeprefix(f"model.layers.{layer}.")
    return f"{'' if layer is None else f'blk.{layer}.'}{NAMES[own]}.weight"


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head in llama.cpp's order: pairs that RoPE rotates together are neighbours."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
