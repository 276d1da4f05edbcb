"""A model's config and tokenizer without its weights: enough to make prompts and to estimate what a run costs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from psr_lens.errors import InputError, ModelError
from psr_lens.models.loading import EMBEDDED


@dataclass(frozen=True)
class Sizes:
    """A model's sizes, under TransformerLens's names."""

    n_layers: int
    """Number of layers."""
    d_model: int
    """Width of the residual stream."""
    n_ctx: int
    """The model's context length in tokens; TransformerLens may allow fewer."""
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


def outline(name_or_path: str | Path) -> ModelOutline:
    """Read a model's config and tokenizer, but not its weights.

    Args:
        name_or_path: As for `load_model`.

    Raises:
        InputError: `name_or_path` is neither a known name nor a folder.
        ModelError: the config cannot be read.
    """
    name = str(name_or_path)
    source = str(_folder(name) or _official(name))
    local = Path(source).is_dir()
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model: the config of {name!r} could not be fetched or read ({error}). "
            "Check the network and your access to the repository, or give a local folder."
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    except (OSError, ValueError, KeyError):
        tokenizer = None
    architecture = (getattr(config, "architectures", None) or [config.model_type])[0]
    sizes = Sizes(
        int(config.num_hidden_layers), int(config.hidden_size), int(getattr(config, "max_position_embeddings", 2048)), architecture
    )
    return ModelOutline(name, sizes, tokenizer)


def _folder(name: str) -> Path | None:
    if name in EMBEDDED:
        return Path(__file__).parents[1] / "organism" / "weights" / EMBEDDED[name]
    return Path(name) if Path(name).is_dir() else None


def _official(name: str) -> str:
    """The repository of a name that TransformerLens knows; any other name with a slash is taken for a repository."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    official = {alias: str(repository) for repository, aliases in MODEL_ALIASES.items() for alias in aliases}
    if name in official or name in OFFICIAL_MODEL_NAMES:
        return official.get(name, name)
    if "/" in name and not name.startswith((".", "/", "~")):
        return name
    close = difflib.get_close_matches(name, [*EMBEDDED, *official, *OFFICIAL_MODEL_NAMES], n=3)
    raise InputError(
        "model",
        repr(name),
        "'organism', 'organism-gpt2', a name that TransformerLens knows, or a local Hugging Face folder",
        f"Did you mean {' or '.join(map(repr, close))}?" if close else "Check the spelling, or that the folder exists.",
    )
