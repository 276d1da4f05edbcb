"""Making a `HookedTransformer` or a `TransformerBridge` of a model that transformers has loaded."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from psr_lens.errors import ModelError
from psr_lens.models.placement import Placement
from psr_lens.models.plain_model import share_weights
from psr_lens.models.sources import Source, is_known
from psr_lens.models.transformers_model import context_of, in_short, quantisation_of, readable

USE_BRIDGE: Final = "Use backend='bridge'."


class CannotTakeError(ModelError):
    """`HookedTransformer` does not support this model."""


# --- TransformerBridge ------------------------------------------------------------------------------------------------------


def as_bridge(plain: Any, tokenizer: Any, source: Source) -> Any:
    """A bridge, which takes the transformers model over.

    Raises:
        ModelError: TransformerLens does not know the architecture.
    """
    from transformer_lens.model_bridge import TransformerBridge

    device = plain.get_input_embeddings().weight.device
    with readable(source, "TransformerLens"):
        bridge = TransformerBridge.boot_transformers(
            source.location, hf_model=plain, dtype=plain.dtype, tokenizer=tokenizer or _empty_tokenizer(), device=str(device)
        )
    if tokenizer is None:
        bridge.tokenizer = None
    if length := context_of(plain.config):
        bridge.cfg.n_ctx = length
    return bridge


def _empty_tokenizer() -> Any:
    """A placeholder for a folder without a tokenizer: a bridge without one would search for it and fail."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")), eos_token="a")


# --- HookedTransformer ------------------------------------------------------------------------------------------------------


def as_hooked_transformer(plain: Any, tokenizer: Any, source: Source, placement: Placement) -> Any:
    """A `HookedTransformer`, unprocessed, whose weights are views of the transformers model's where they can be.

    Raises:
        CannotTakeError: that class does not support the model.
    """
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import fill_missing_keys, get_pretrained_state_dict

    architecture = type(plain).__name__
    if method := quantisation_of(plain.config):
        raise _cannot_take(source, architecture, f"its weights are quantised ({method})")
    try:
        known = not source.is_local and is_known(source.location)
        with quiet():
            cfg = _known_config(plain, source, placement) if known else _config(plain, architecture, placement)
            if tokenizer is None:
                cfg.tokenizer_name = None  # HookedTransformer would search for one
            if cfg.positional_embedding_type != "standard" and (length := context_of(plain.config)):
                cfg.n_ctx = length  # TransformerLens allows some architectures no more than 2,048
            state = get_pretrained_state_dict(source.location if known else ".", cfg, plain, dtype=plain.dtype)
            model = HookedTransformer(cfg, tokenizer, move_to_device=placement.n_devices > 1)
            model.load_state_dict(fill_missing_keys(model, state), strict=False)
    except ModelError:
        raise
    except Exception as error:
        raise _cannot_take(source, architecture, in_short(error)) from error
    model.generation_config = plain.generation_config
    if placement.n_devices > 1:
        return model
    model = model.to(placement.device, print_details=False)
    share_weights(model, plain, state)
    return model


def _cannot_take(source: Source, architecture: str, reason: str) -> CannotTakeError:
    return CannotTakeError(f"model: HookedTransformer cannot take {source} ({architecture}: {reason}). {USE_BRIDGE}")


def _known_config(plain: Any, source: Source, placement: Placement) -> Any:
    """The config that TransformerLens has for a name."""
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    return get_pretrained_model_config(
        source.location,
        hf_cfg=plain.config.to_dict(),
        device=str(placement.device),
        n_devices=placement.n_devices,
        dtype=plain.dtype,
    )


def _config(plain: Any, architecture: str, placement: Placement) -> Any:
    """The config that TransformerLens makes of a config.json.

    It guesses the architecture from the path, so it gets a copy in a folder with a neutral name.
    """
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    config = json.loads(plain.config.to_json_string(use_diff=False)) | {"architectures": [architecture]}
    if "n_positions" in config:
        config.setdefault("n_ctx", config["n_positions"])  # GPT-2 as transformers 5 saves it
    with tempfile.TemporaryDirectory(prefix="psr_") as neutral:
        (Path(neutral) / "config.json").write_text(json.dumps(config))
        cfg = get_pretrained_model_config(neutral, device=str(placement.device), n_devices=placement.n_devices, dtype=plain.dtype)
    if cfg.original_architecture != architecture:
        raise ModelError(
            f"model: TransformerLens took {architecture} for {cfg.original_architecture}, because the path of the temporary folder "
            f"{neutral} contains the name of an architecture. Set TMPDIR to another folder."
        )
    return cfg


# --- what only TransformerLens can read ----------------------------------------------------------------------------------------


def toy_model(source: Source, placement: Placement, dtype: Any, *, hooked: bool) -> Any:
    """One of TransformerLens's own toy models, which transformers cannot read.

    Raises:
        ModelError: it cannot be fetched or read.
    """
    with readable(source, "TransformerLens"), quiet():
        if hooked:
            from transformer_lens import HookedTransformer

            return HookedTransformer.from_pretrained_no_processing(
                source.location, device=str(placement.device), n_devices=placement.n_devices, dtype=dtype
            )
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(source.location, device=str(placement.device), dtype=dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide TransformerLens 3.9's deprecation warning at every construction, and what it prints; psr_lens supports both classes."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
