"""Files of an artifact: JSON for what can be read, safetensors for numbers, each put in place when it is whole. No pickle."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from psr_lens.errors import ArtifactError


def write_artifact(folder: Path, settings: tuple[str, Mapping[str, Any]], tensors: tuple[str, Mapping[str, Tensor]] | None) -> None:
    """Write a settings file, and a tensor file before it; what is there already is replaced.

    Args:
        folder: Where; made if it is missing.
        settings: File name and content.
        tensors: File name and content, if there are any.

    Raises:
        TypeError: the settings hold what JSON cannot; nothing was written then.
    """
    text = json.dumps(settings[1], indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    if tensors is not None:
        name, values = tensors
        temporary = folder / f".{name}.new"
        save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, temporary)
        temporary.replace(folder / name)
    write_text(folder / settings[0], text)


def write_text(path: Path, text: str) -> None:
    """Write a file of UTF-8 text, at once or not at all; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def remove_artifact(folder: Path, names: Collection[str]) -> bool:
    """Remove the named files of an artifact, and its folder where nothing else is in it; False where none of them was there."""
    present = [folder / name for name in names if (folder / name).is_file()]
    for path in present:
        path.unlink()
    if present and not any(folder.iterdir()):
        folder.rmdir()
    return bool(present)


def read_settings(path: Path, formats: Collection[int], writer: str) -> dict[str, Any]:
    """Read a settings file of one of some formats.

    Args:
        path: The file.
        formats: Format versions that can be read.
        writer: What wrote it, for the error's remedy.

    Raises:
        ArtifactError: the file is missing, damaged, or of another format.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: no such file. Give the folder that `{writer}` wrote.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}). Save it anew with `{writer}`.") from error
    found = settings.get("format") if isinstance(settings, dict) else None
    if isinstance(found, bool) or not isinstance(found, int) or found not in formats:
        readable = " and ".join(map(str, formats))
        raise ArtifactError(f"{path}: has format {found!r}, this version reads {readable}. Update psr_lens, or save it anew.")
    return cast(dict[str, Any], settings)


def read_tensors(path: Path, writer: str) -> dict[str, Tensor]:
    """Read a tensor file.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        return cast(dict[str, Tensor], load_file(path))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file. Give the folder that `{writer}` wrote.") from error
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path}: cannot be read as safetensors ({error}). Save it anew with `{writer}`.") from error
