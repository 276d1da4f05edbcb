"""What identifies a model from one run to the next: every byte of its weights, its config, its class and its tokenizer.

All bytes are read each time, at about 0.1 s for a gigabyte in memory. A digest that is kept while a weight's version counter and address
stay the same would be wrong after `weight.data[0] = 0` or an edit through numpy, which change neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import torch
import xxhash
from torch import Tensor

from psr_lens._utils.digests import digest_of
from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.errors import ModelError
from psr_lens.models.config_content import config_content
from psr_lens.models.fingerprints import model_identity
from psr_lens.models.foreign_hooks import where_hooked
from psr_lens.models.hooked_model import HookedModel, called_module, end_tokens, tokenizer_of
from psr_lens.models.module_settings import settings_digest, why_not_told


def model_content(model: HookedModel) -> dict[str, Any]:
    """What must be the same for a model to compute the same: class, weights, settings, config, tokenizer and end tokens, as JSON content.

    The entry `settings` is that of `settings_digest`: None if the content of something in the model's modules cannot be told, which is no
    identity then (see `untold`). Hooks are not part of it: see `has_hooks`.
    """
    module = called_module(model)
    configs = [getattr(each, name, None) for each, name in ((model, "cfg"), (module, "config"))]
    return {
        "class": type(model).__name__,
        "weights": weights_digest(cast(torch.nn.Module, model), module),
        "settings": settings_digest(model),
        "config": digest_of([config_content(config) for config in configs]),
        "tokenizer": "" if model.tokenizer is None else tokenizer_content(tokenizer_of(model)),
        "end_tokens": sorted(end_tokens(model)),
    }


def classifier_content(model: torch.nn.Module, tokenizer: Any) -> dict[str, Any] | None:
    """What must be the same for a plain transformers model to give a text the same logits, as JSON content.

    Args:
        model: The model.
        tokenizer: Its tokenizer, which adds its own special tokens.

    Returns:
        The content; None if there are hooks on the model, if the content of a setting or function in its modules cannot be told, or if the
        tokenizer has no file that says all that it does.
    """
    if not getattr(tokenizer, "is_fast", False) or untold(model) is not None:
        return None
    return {
        "class": type(model).__name__,
        "weights": weights_digest(model),
        "settings": settings_digest(model),
        "config": digest_of(config_content(model.config)),
        "tokenizer": digest_of([tokenizer_content(tokenizer), json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]]),
    }


def untold(model: Any) -> str | None:
    """Why a model cannot be told from others by content: the module and its hook or attribute; None if it can.

    Args:
        model: A model of TransformerLens or of plain transformers.

    Returns:
        What stands in the way, in the plural: "hooks on the model (a hook on blocks.0.hook_resid_post)", say.
    """
    if (hooked := where_hooked(model)) is not None:
        return f"hooks on the model ({hooked})"
    reason = why_not_told(model)
    return None if reason is None else f"functions or settings in the model that cannot be told by their content ({reason})"


def alike(recorded: Any, content: Mapping[str, Any]) -> bool:
    """Whether what was recorded of a model is of the model with this content.

    What was recorded before there was the entry `settings` lacks it, and is compared without.
    """
    if not isinstance(recorded, Mapping):
        return False
    return dict(recorded) == {name: each for name, each in content.items() if name != "settings" or name in recorded}


def weights_digest(*modules: torch.nn.Module) -> str:
    """xxh3_128 of every parameter and buffer of some modules (name, type, shape and all bytes), in hexadecimal.

    Raises:
        ModelError: a weight is not in memory, as with weights that accelerate keeps on disk.
    """
    found = xxhash.xxh3_128()
    first_names: dict[int, str] = {}
    for name, tensor in (each for module in modules for each in _tensors(module)):
        if (first := first_names.setdefault(id(tensor), name)) != name:
            found.update(f"{name} is {first}".encode())  # tied weights, whose bytes need to be read only once
            continue
        if tensor.is_meta:
            raise ModelError(
                f"model: the weight {name} is not in memory, so the model cannot be told from others. "
                "Load it without offloading, or leave out `cache` and `checkpoint`."
            )
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(raw_bytes(tensor))
    return found.hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """xxh3_128 of everything that decides a text's token ids; 32 hexadecimal digits.

    Padding, truncation and the special tokens added around a text are left out: they are settings of a call, which TransformerLens
    changes as it runs, and psr_lens adds special tokens itself.
    """
    if getattr(tokenizer, "is_fast", False):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        return digest_of({key: value for key, value in content.items() if key not in ("padding", "truncation", "post_processor")})
    return digest_of([sorted(tokenizer.get_vocab().items()), sorted(_special(tokenizer).items())])


def tokenizer_content(tokenizer: Any) -> str:
    """xxh3_128 of the fingerprint and of what decides how prompts are built and how tokens become text."""
    template = getattr(tokenizer, "chat_template", None)
    cleaned = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    return digest_of([tokenizer_fingerprint(tokenizer), sorted(_special(tokenizer).items()), config_content(template), cleaned])


# --- as earlier versions told models apart ----------------------------------------------------------------------------------

_SAMPLE: Final = 1_024


def former_identity(model: HookedModel) -> dict[str, Any]:
    """What runs and checkpoints of format 1 hold: the fingerprint, and SHA-256 of about every n/1024-th of the n numbers of a weight."""
    weights = hashlib.sha256()
    for parameter in model.parameters():
        flat = parameter.detach().flatten()
        weights.update(flat[:: max(1, flat.numel() // _SAMPLE)].cpu().float().numpy().tobytes())
    return model_identity(model) | {"weights": weights.hexdigest()}


# --- helpers ----------------------------------------------------------------------------------------------------------------


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    # Not the module's own methods: a bridge replaces them.
    yield from torch.nn.Module.named_parameters(module, remove_duplicate=False)
    yield from torch.nn.Module.named_buffers(module, remove_duplicate=False)


def _special(tokenizer: Any) -> dict[str, str]:
    return {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
