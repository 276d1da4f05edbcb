"""The two files of a map between models, `activation_map.json` and `activation_map.safetensors`; every field is checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import xxhash
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.digests import digest_of
from psr_lens._utils.numbers import is_real, is_whole
from psr_lens._utils.safe_files import brief, read_settings, read_tensors, write_artifact
from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.errors import ArtifactError

FORMAT: Final = 1
"""Format version of the files."""
SETTINGS_FILE: Final = "activation_map.json"
WEIGHTS_FILE: Final = "activation_map.safetensors"
_WRITER: Final = "ActivationMap.save"
_KINDS: Final = {"source_model": dict, "target_model": dict, "texts": str, "text_count": int, "tokens": int}
_PARTS: Final = ("matrix", "offset")

Maps = dict[int, tuple[Float[Tensor, "source_width target_width"], Float[Tensor, " source_width"]]]
"""Matrix and offset by target layer."""


def write_map(folder: Path, record: Mapping[str, Any], maps: Maps) -> None:
    """Write the files; older ones are replaced.

    Args:
        folder: Where to write; created if it is missing.
        record: What goes into the settings file.
        maps: What goes into the tensor file.
    """
    tensors = {f"{target}/{part}": each for target, both in maps.items() for part, each in zip(_PARTS, both, strict=True)}
    settings = {"format": FORMAT, **record, "checksum": _checksum(record, tensors)}
    write_artifact(folder, (SETTINGS_FILE, settings), (WEIGHTS_FILE, {name: each.contiguous() for name, each in tensors.items()}))


def read_map(folder: Path) -> tuple[dict[str, Any], Maps]:
    """What `write_map` wrote.

    Raises:
        ArtifactError: a file is missing, damaged, of a newer format, or a link out of the folder; or the files do not belong together.
    """
    record = read_settings(folder / SETTINGS_FILE, [FORMAT], _WRITER, folder)
    try:
        checksum = record.pop("checksum")
        record.pop("format")
        targets = _checked(record)
    except (KeyError, TypeError, ValueError) as error:
        raise _unfit(folder, error) from error
    tensors = read_tensors(folder / WEIGHTS_FILE, [f"{target}/{part}" for target in targets for part in _PARTS], _WRITER, folder)
    try:
        if checksum != _checksum(record, tensors):
            raise ValueError("the checksum is of other content")
        maps = {target: (tensors[f"{target}/matrix"], tensors[f"{target}/offset"]) for target in targets}
        widths = tuple(record[name]["d_model"] for name in ("source_model", "target_model"))
        for target, (matrix, offset) in maps.items():
            if tuple(matrix.shape) != widths or tuple(offset.shape) != widths[:1]:
                raise ValueError(f"the map of target layer {target} is of other widths than the models")
            if not bool(matrix.isfinite().all() and offset.isfinite().all()):
                raise ValueError(f"the map of target layer {target} is not finite")
    except (KeyError, TypeError, ValueError) as error:
        raise _unfit(folder, error) from error
    return record, maps


def _checked(record: Mapping[str, Any]) -> list[int]:
    """The target layers of a settings file, after a look at all its fields."""
    for name, kind in _KINDS.items():
        if isinstance(record[name], bool) or not isinstance(record[name], kind):
            raise TypeError(f"{name} is {brief(record[name])}")
    if not isinstance(record["layers"], list) or not record["layers"]:
        raise TypeError(f"layers is {brief(record['layers'])}")
    targets = []
    for each in record["layers"]:
        whole = all(is_whole(each[name]) and each[name] >= 0 for name in ("source", "target", "massive"))
        if not whole or not is_real(each["ridge"]) or not (each["r2"] is None or is_real(each["r2"])):
            raise TypeError(f"a layer is {brief(each)}")
        targets.append(each["target"])
    if len(set(targets)) < len(targets):
        raise ValueError("a target layer occurs twice")
    return targets


def _checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """xxh3_128 of the record and the tensors, in hexadecimal."""
    found = xxhash.xxh3_128(digest_of(dict(record)).encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(raw_bytes(tensors[name].contiguous()))
    return found.hexdigest()


def _unfit(folder: Path, error: Exception) -> ArtifactError:
    what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return ArtifactError(f"{folder}: the settings and the tensors do not belong together ({what}). Save the map again.")
