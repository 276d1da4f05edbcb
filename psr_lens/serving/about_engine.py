"""What a vLLM engine says of itself to those who sample with it: its sizes, and what its answers depend on."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final

from psr_lens._utils.digests import digest_of

ENGINE: Final = "psr_engine"
"""The key of a server's list of models that holds these."""
_OF_DRAFTS: Final = ("method", "model", "num_speculative_tokens", "rejection_sample_method", "draft_sample_method")


@dataclass(frozen=True)
class AboutEngine:
    """An engine, as JSON has it."""

    identity: str
    """The version of vLLM, the type of the weights, and a digest of what else in the configuration changes logits."""
    dtype: str
    """Type of the weights and activations, e.g. `"bfloat16"`."""
    n_layers: int
    """Number of layers."""
    d_model: int
    """Width of the residual stream."""
    d_vocab: int
    """Number of tokens in the vocabulary."""
    max_model_len: int
    """Largest number of tokens in a prompt with its response."""


def about_engine(config: Any) -> AboutEngine:
    """What the `VllmConfig` of an engine says."""
    model = config.model_config
    text = model.hf_text_config
    dtype = str(model.dtype).removeprefix("torch.")
    identity = f"vllm {importlib.import_module('vllm').__version__}, {dtype}, {digest_of(_what_changes_logits(config))}"
    return AboutEngine(
        identity, dtype, int(text.num_hidden_layers), int(text.hidden_size), int(text.vocab_size), int(model.max_model_len)
    )


def _what_changes_logits(config: Any) -> dict[str, Any]:
    model, drafts = config.model_config, config.speculative_config
    settings = json.loads(model.hf_config.to_json_string(use_diff=False))
    return {
        "model": {name: value for name, value in settings.items() if name != "_name_or_path"},
        "quantization": [str(model.quantization), _plain(getattr(model, "quantization_config", None))],
        "cache": [str(config.cache_config.cache_dtype), list(config.cache_config.kv_cache_dtype_skip_layers)],
        "drafts": None if drafts is None else {name: _plain(getattr(drafts, name, None)) for name in _OF_DRAFTS},
        "processors": [_plain(each) for each in model.logits_processors or ()],
        "installed": sorted(each.value for each in entry_points(group="vllm.logits_processors")),
    }


def _plain(given: Any) -> str:
    """A setting as text that is the same in every process: classes and functions by name."""
    return f"{given.__module__}.{given.__qualname__}" if hasattr(given, "__qualname__") else str(given)
