"""A model's config and tokenizer without its weights: enough to make prompts and to estimate what a run costs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from psr_lens.models.sources import find_source
from psr_lens.models.transformers_model import architecture_of, context_of, read_config, read_tokenizer

UNKNOWN_CONTEXT: Final = 2048
"""What TransformerLens takes for the context length of a model whose config has none."""


@dataclass(frozen=True)
class Sizes:
    """A model's sizes, under TransformerLens's names."""

    n_layers: int
    """Number of layers."""
    d_model: int
    """Width of the residual stream."""
    n_ctx: int
    """The model's context length in tokens."""
    architecture: str
    """Name of the architecture."""
    default_prepend_bos: bool = True
    """Whether plain text begins with the beginning-of-sequence token."""


@dataclass(frozen=True, eq=False)
class ModelOutline:
    """As much of a model as prompts need: it can replace the model in `prompt_pairs`, but not where the model is run."""

    name: str
    """The name or path that `load_model` takes."""
    cfg: Sizes
    """Its sizes."""
    tokenizer: Any
    """Its tokenizer; None if it has none."""


def has_outline(name_or_path: str | Path) -> bool:
    """Whether a model's config can be read without its weights: that of TransformerLens's own toy models cannot.

    Raises:
        InputError: as for `outline`.
        ModelError: the folder holds no model.
    """
    return not find_source(name_or_path).is_of_transformer_lens


def outline(name_or_path: str | Path) -> ModelOutline:
    """Read a model's config and tokenizer, but not its weights.

    Args:
        name_or_path: As for `load_model`.

    Raises:
        InputError: `name_or_path` is neither a known name, nor a folder, nor a `.gguf` file.
        ModelError: the config or the tokenizer cannot be read.
    """
    source = find_source(name_or_path)
    config = read_config(source)
    text = config.get_text_config()
    sizes = Sizes(
        int(text.num_hidden_layers), int(text.hidden_size), context_of(config) or UNKNOWN_CONTEXT, architecture_of(config)
    )
    return ModelOutline(str(name_or_path), sizes, read_tokenizer(source))


def outline_or_none(name_or_path: str | Path) -> ModelOutline | None:
    """`outline`, or None for one of TransformerLens's own toy models, whose config cannot be read without its weights.

    Raises:
        InputError: as for `outline`.
        ModelError: as for `outline`.
    """
    return outline(name_or_path) if has_outline(name_or_path) else None
