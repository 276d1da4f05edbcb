"""A constant replacement as a control vector for llama.cpp and repeng: a GGUF file with one direction a layer.

References:
    llama.cpp's `--control-vector-scaled`, and repeng's `ControlVector.import_gguf`, https://github.com/vgel/repeng.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.optional import package
from psr_lens.errors import InputError

if TYPE_CHECKING:
    from psr_lens.replacement.replacement import Replacement

ARCHITECTURE: Final = "controlvector"

_RESID_POST: Final = re.compile(r"blocks\.(\d+)\.hook_resid_post")
_KEEP: Final = "`save` keeps it whole; `attach` steers a transformers model with it."


def write_control_vector(replacement: Replacement, path: str | Path, alpha: float = 1.0) -> Path:
    """Write the file; see `Replacement.to_gguf`."""
    directions = control_vector(replacement, alpha)
    gguf = package("gguf", "gguf")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
    writer.add_description(f"{replacement.method} of {replacement.model.get('model_name')} at alpha {alpha:g}, written by psr_lens")
    writer.add_string(f"{ARCHITECTURE}.model_hint", _model_type(str(replacement.model.get("architecture", "unknown"))))
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(path)
    return path


def control_vector(replacement: Replacement, alpha: float = 1.0) -> dict[int, Float[Tensor, " d_model"]]:
    """What is added after each block at one strength, float32 on the CPU; errors as for `Replacement.to_gguf`."""
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not torch.isfinite(torch.tensor(float(alpha))):
        raise InputError("alpha", repr(alpha), "a finite number")
    if replacement.tokens == "last":
        raise InputError(
            "tokens", "'last'", "'span': a control vector acts on every token, and cannot stop after the prompt", _KEEP
        )
    if replacement.span != "R":
        raise InputError(
            "span",
            repr(replacement.span),
            "'R': a control vector acts on every token, and cannot begin at the question",
            f"Under R, too, it will act on the whole prompt. {_KEEP}",
        )
    directions = {}
    for name, site in replacement.sites.items():
        found = _RESID_POST.fullmatch(name)
        if found is None:
            raise InputError("sites", repr(name), "`hook_resid_post`, the only point where llama.cpp adds a control vector", _KEEP)
        if site.rule != "constant":
            raise InputError(
                "sites",
                f"the rule {site.rule!r} at {name}, whose strength is read from each token",
                "'constant': a control vector is the same on every token",
                _KEEP,
            )
        layer = int(found.group(1))
        if layer == 0:
            raise InputError(
                "sites",
                repr(name),
                "layers from 1: llama.cpp adds no control vector after block 0",
                f"Fit from layer 1 on. {_KEEP}",
            )
        added = site.bias.double() @ site.directions.double()
        directions[layer] = ((alpha + replacement.offset) * added).detach().float().cpu()
    return directions


def _model_type(architecture: str) -> str:
    """Transformers' `model_type` of a class, which repeng writes as the hint; the class's own name where there is none."""
    import transformers

    config = getattr(getattr(transformers, architecture, None), "config_class", None)
    return str(getattr(config, "model_type", architecture))
