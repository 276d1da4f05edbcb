"""Files of an artifact: JSON for settings, safetensors for numbers, each written atomically. No pickle.

Files may come from anyone. So nothing outside the artifact's folder is opened, a file's size and header are checked before its content
is read, and any fault in a file is an `ArtifactError`.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from psr_lens.errors import ArtifactError, InputError

LARGEST_SETTINGS: Final = 16 * 2**20
"""Most bytes of a settings file; a thousand results take about 0.3 MB."""
LARGEST_TENSORS: Final = 4 * 2**30
"""Most bytes of a tensor file; rank 64 at all 80 layers of a model with d_model 8,192 takes about 0.3 GB."""
DEEPEST: Final = 32
"""Deepest nesting of lists and dictionaries in a settings file."""

_LARGEST_HEADER: Final = 4 * 2**20
_DTYPES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Allowed types of tensors, and their bytes per number."""
_DIMENSIONS: Final = (1, 2, 3)

_BRIEF: Final = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120


def write_artifact(folder: Path, settings: tuple[str, Mapping[str, Any]], tensors: tuple[str, Mapping[str, Tensor]] | None) -> None:
    """Write a tensor file and then a settings file; existing files are replaced.

    Args:
        folder: Where to write; created if it is missing.
        settings: File name and content.
        tensors: File name and content; None for no tensor file.

    Raises:
        TypeError: the settings cannot be written as JSON; nothing is written.
        InputError: the folder is a file, or the settings are larger or deeper nested than can be read back; nothing is written.
    """
    check_no_file_on(folder, "folder")
    text = json.dumps(settings[1], indent=2) + "\n"
    if len(text) > LARGEST_SETTINGS:
        raise InputError("settings", f"{len(text):,} bytes", f"at most {LARGEST_SETTINGS:,}", "Leave something out.")
    try:
        _check_plain(json.loads(text))
    except ValueError as error:
        raise InputError("settings", str(error), "settings that can be read back") from error
    folder.mkdir(parents=True, exist_ok=True)
    if tensors is not None:
        name, values = tensors
        temporary = folder / f".{name}.new"
        save_file({key: value.detach().cpu().contiguous() for key, value in values.items()}, temporary)
        temporary.replace(folder / name)
    write_text(folder / settings[0], text)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; its folder is created if it is missing.

    Raises:
        InputError: the path is a folder, or leads through a file.
    """
    check_file_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def check_file_name(path: Path, example: str | None = None) -> None:
    """Check that a file can have this path, before costly work.

    Args:
        path: The file.
        example: A file name for the error; that of `path` if None.

    Raises:
        InputError: the path is a folder, or leads through a file.
    """
    if path.is_dir():
        example = str(path / (example or path.name))
        raise InputError("path", f"the folder {str(path)!r}", "a file name", f"For example {example!r}.")
    check_no_file_on(path.parent, "path")


def check_no_file_on(folder: Path, argument: str) -> None:
    """Refuse a folder that is a file, or lies below one.

    Raises:
        InputError: it is, or does.
    """
    found = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    if found.exists() and not found.is_dir():
        raise InputError(argument, f"the file {str(found)!r}", "a folder, or a name that does not exist yet")


def brief(value: Any) -> str:
    """A shortened `repr` for error messages: the value comes from a file that anyone may have written."""
    return _BRIEF.repr(value)


def remove_artifact(folder: Path, names: Collection[str]) -> bool:
    """Remove the named files of an artifact, and its folder if nothing else is in it; False if none of them existed."""
    present = [folder / name for name in names if (folder / name).is_file()]
    for path in present:
        path.unlink()
    if present and not any(folder.iterdir()):
        folder.rmdir()
    return bool(present)


def read_settings(path: Path, formats: Collection[int], writer: str, root: Path | None = None) -> dict[str, Any]:
    """Read a settings file.

    Args:
        path: The file.
        formats: The format versions that can be read.
        writer: What writes such a file, for the error's remedy.
        root: The folder that the file must lie in after following links; None if the user named the file.

    Raises:
        ArtifactError: the file is missing, damaged, too large, outside `root`, or of another format.
    """
    with _opened(path, writer, root) as (file, size):
        if size > LARGEST_SETTINGS:
            raise ArtifactError(
                f"{path}: has {size:,} bytes, at most {LARGEST_SETTINGS:,} can be read. Save it again with `{writer}`."
            )
        content = file.read(LARGEST_SETTINGS)
    try:
        settings = json.loads(content.decode("utf-8"))
        _check_plain(settings)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}). Save it again with `{writer}`.") from error
    found = settings.get("format") if isinstance(settings, dict) else None
    if isinstance(found, bool) or not isinstance(found, int) or found not in formats:
        readable = " and ".join(map(str, formats))
        raise ArtifactError(
            f"{path}: format {brief(found)} is not supported; this version reads {readable}. "
            f"Update psr_lens, or save the file again with `{writer}`."
        )
    return cast(dict[str, Any], settings)


def read_tensors(path: Path, names: Collection[str], writer: str, root: Path | None = None) -> dict[str, Tensor]:
    """Read a tensor file. Its header is checked first, so no more memory is used than the file is large.

    Args:
        path: The file.
        names: The tensors that it must hold; no others are allowed.
        writer: What writes such a file, for the error's remedy.
        root: The folder that the file must lie in after following links; None if the user named the file.

    Returns:
        Name to a floating-point tensor of one to three dimensions, none of them empty.

    Raises:
        ArtifactError: the file is missing, damaged, too large, outside `root`, or holds other tensors.
    """
    try:
        with _opened(path, writer, root) as (file, size):
            _check_tensors(*_header(file, size), names)
            file.seek(0)
            return cast(dict[str, Tensor], load(file.read(size)))
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(f"{path}: cannot be read as safetensors ({error}). Save it again with `{writer}`.") from error


@contextmanager
def _opened(path: Path, writer: str, root: Path | None) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file inside `root`; gives the file and its size."""
    try:
        real = path.resolve(strict=True)
        if root is not None and not real.is_relative_to(root.resolve(strict=True)):
            raise ArtifactError(
                f"{path}: links to a path outside {root}, and is not followed. Give a folder that holds the files themselves; "
                "`from_hub` reads the Hub's cache."
            )
        if not real.is_file():  # opening a pipe would block forever
            raise ArtifactError(f"{path}: is not a regular file. Give the folder that `{writer}` wrote.")
        with real.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: no such file. Give the folder that `{writer}` wrote.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ArtifactError(f"{path}: cannot be read ({error}). Save it again with `{writer}`.") from error


def _check_plain(value: Any) -> None:
    """Refuse text that UTF-8 cannot encode and nesting that is too deep, so that whatever is read can be written again."""
    left = [(value, 0)]
    while left:
        each, depth = left.pop()
        if depth > DEEPEST:
            raise ValueError(f"lists and dictionaries nested more than {DEEPEST} deep")
        if isinstance(each, str):
            each.encode()
        elif isinstance(each, dict):
            left += [(part, depth + 1) for pair in each.items() for part in pair]
        elif isinstance(each, list):
            left += [(part, depth + 1) for part in each]


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the number of bytes after it."""
    if size > LARGEST_TENSORS:
        raise ValueError(f"{size:,} bytes, at most {LARGEST_TENSORS:,} can be read")
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    header = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is not a dictionary")
    header.pop("__metadata__", None)
    return header, size - 8 - length


def _check_tensors(header: Mapping[str, Any], held: int, names: Collection[str]) -> None:
    """Refuse faults that the header shows: missing or extra tensors, types that are not floating-point, wrong sizes."""
    for what, which in (("lacks", set(names) - set(header)), ("also holds", set(header) - set(names))):
        if which:
            raise ValueError(f"it {what} {', '.join(map(brief, sorted(which)[:3]))}{' and others' if len(which) > 3 else ''}")
    for name, entry in header.items():
        dtype, shape = entry["dtype"], entry["shape"]
        if dtype not in _DTYPES:
            raise ValueError(f"{name} has type {brief(dtype)}, expected one of {', '.join(_DTYPES)}")
        whole = isinstance(shape, list) and all(type(length) is int and length > 0 for length in shape)
        if not whole or len(shape) not in _DIMENSIONS:
            raise ValueError(f"{name} has the shape {brief(shape)}")
        held -= math.prod(shape) * _DTYPES[dtype]
    if held:
        raise ValueError(f"its tensors are {abs(held):,} bytes {'less' if held > 0 else 'more'} than the file holds")
