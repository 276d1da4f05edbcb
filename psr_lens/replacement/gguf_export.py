"""A constant replacement as a control vector for llama.cpp and repeng: a GGUF file with one direction per layer.

References:
    llama.cpp's `--control-vector-scaled`, and repeng's `ControlVector.import_gguf`, https://github.com/vgel/repeng.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.optional import package
from psr_lens._utils.safe_files import brief, check_file_name
from psr_lens.errors import InputError
from psr_lens.replacement.spec import ReplacementSpec, finite_number

ARCHITECTURE: Final = "controlvector"

_RESID_POST: Final = re.compile(r"blocks\.(\d+)\.hook_resid_post")
_INSTEAD: Final = "Use `save` to keep the whole replacement, or `attach` to steer a transformers model with it."


def write_control_vector(replacement: ReplacementSpec, path: str | Path, alpha: float) -> Path:
    """Write the file; see `Replacement.to_gguf`."""
    directions = _control_vector(replacement, alpha)
    gguf = package("gguf", "gguf")
    path = Path(path)
    check_file_name(path)
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


def _control_vector(replacement: ReplacementSpec, alpha: float) -> dict[int, Float[Tensor, " d_model"]]:
    """What is added after each block at one strength, by layer, in float32 on the CPU; raises what `Replacement.to_gguf` raises."""
    strength = finite_number(alpha)
    if strength is None:
        raise InputError("alpha", brief(alpha), "a finite number")
    if replacement.tokens == "last":
        raise InputError(
            "tokens", "'last'", "'span', since a control vector acts on every token and cannot stop after the prompt", _INSTEAD
        )
    if replacement.span != "R":
        raise InputError(
            "span",
            repr(replacement.span),
            "'R', since a control vector acts on every token and cannot begin at the question",
            f"Even with R, it acts on the whole prompt. {_INSTEAD}",
        )
    directions = {}
    for name, site in replacement.sites.items():
        found = _RESID_POST.fullmatch(name)
        if found is None:
            raise InputError(
                "sites", repr(name), "`hook_resid_post`, the only hook point where llama.cpp adds a control vector", _INSTEAD
            )
        if site.rule != "constant":
            raise InputError(
                "sites",
                f"the rule {site.rule!r} at {name}, whose coefficient is read from each token",
                "'constant', since a control vector is the same on every token",
                _INSTEAD,
            )
        layer = int(found.group(1))
        if layer == 0:
            raise InputError(
                "sites",
                repr(name),
                "layers from 1 on, since llama.cpp adds no control vector after block 0",
                f"Fit from layer 1 on. {_INSTEAD}",
            )
        added = site.bias.double() @ site.directions.double()
        directions[layer] = ((strength + replacement.offset) * added).detach().float().cpu()
    return directions


def _model_type(architecture: str) -> str:
    """Transformers' `model_type` of a class, which repeng writes as the hint; the name of the class if transformers does not know it."""
    import transformers

    config = getattr(getattr(transformers, architecture, None), "config_class", None)
    return str(getattr(config, "model_type", architecture))
