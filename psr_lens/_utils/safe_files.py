"""Files of an artifact: JSON for what can be read, safetensors for numbers, each put in place when it is whole. No pickle.

What is read may come from anybody. So nothing outside the artifact's folder is opened, nothing is read that its own header or size
gives away, and whatever is wrong with a file is an `ArtifactError`.
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
"""Most bytes of a settings file; a thousand results take a third of a million."""
LARGEST_TENSORS: Final = 4 * 2**30
"""Most bytes of a tensor file; rank 64 at all 80 layers of a model with d_model 8,192 takes a third of a thousand million."""
DEEPEST: Final = 32
"""Most lists and dictionaries within each other in a settings file."""

_LARGEST_HEADER: Final = 4 * 2**20
_DTYPES: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Types that a tensor may have, and their bytes."""
_DIMENSIONS: Final = (1, 2, 3)

_BRIEF: Final = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 120


def write_artifact(folder: Path, settings: tuple[str, Mapping[str, Any]], tensors: tuple[str, Mapping[str, Tensor]] | None) -> None:
    """Write a settings file, and a tensor file before it; what is there already is replaced.

    Args:
        folder: Where; made if it is missing.
        settings: File name and content.
        tensors: File name and content, if there are any.

    Raises:
        TypeError: the settings hold what JSON cannot; nothing was written then.
        InputError: they are more than can be read again; nothing was written then either.
    """
    text = json.dumps(settings[1], indent=2) + "\n"
    if len(text) > LARGEST_SETTINGS:
        raise InputError("settings", f"{len(text):,} bytes", f"at most {LARGEST_SETTINGS:,}", "Leave out what is not needed.")
    try:
        _check_plain(json.loads(text))
    except ValueError as error:
        raise InputError("settings", str(error), "text and lists that can be read again") from error
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


def brief(value: Any) -> str:
    """A value as an error may show it, however large it is: it comes from a file that anybody may have written."""
    return _BRIEF.repr(value)


def remove_artifact(folder: Path, names: Collection[str]) -> bool:
    """Remove the named files of an artifact, and its folder where nothing else is in it; False where none of them was there."""
    present = [folder / name for name in names if (folder / name).is_file()]
    for path in present:
        path.unlink()
    if present and not any(folder.iterdir()):
        folder.rmdir()
    return bool(present)


def read_settings(path: Path, formats: Collection[int], writer: str, root: Path | None = None) -> dict[str, Any]:
    """Read a settings file of one of some formats.

    Args:
        path: The file.
        formats: Format versions that can be read.
        writer: What wrote it, for the error's remedy.
        root: The folder that the file must lie in, links followed; None where the user named the file.

    Raises:
        ArtifactError: the file is missing, damaged, too large, outside `root`, or of another format.
    """
    with _opened(path, writer, root) as (file, size):
        if size > LARGEST_SETTINGS:
            raise ArtifactError(
                f"{path}: has {size:,} bytes, at most {LARGEST_SETTINGS:,} can be read. Save it anew with `{writer}`."
            )
        content = file.read(LARGEST_SETTINGS)
    try:
        settings = json.loads(content.decode("utf-8"))
        _check_plain(settings)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}). Save it anew with `{writer}`.") from error
    found = settings.get("format") if isinstance(settings, dict) else None
    if isinstance(found, bool) or not isinstance(found, int) or found not in formats:
        readable = " and ".join(map(str, formats))
        raise ArtifactError(f"{path}: has format {brief(found)}, this version reads {readable}. Update psr_lens, or save it anew.")
    return cast(dict[str, Any], settings)


def read_tensors(path: Path, names: Collection[str], writer: str, root: Path | None = None) -> dict[str, Tensor]:
    """Read a tensor file. Its header is checked before a tensor is read, so memory goes no further than the file's own size.

    Args:
        path: The file.
        names: The tensors that it must hold, and no others.
        writer: What wrote it, for the error's remedy.
        root: The folder that the file must lie in, links followed; None where the user named the file.

    Returns:
        Floating-point tensors of one to three dimensions, none of them empty.

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
        raise ArtifactError(f"{path}: cannot be read as safetensors ({error}). Save it anew with `{writer}`.") from error


@contextmanager
def _opened(path: Path, writer: str, root: Path | None) -> Iterator[tuple[BinaryIO, int]]:
    """A plain file inside `root`, and its size."""
    try:
        real = path.resolve(strict=True)
        if root is not None and not real.is_relative_to(root.resolve(strict=True)):
            raise ArtifactError(
                f"{path}: is a link to a place outside {root}, which is not followed. Give a folder with the files themselves; "
                "`from_hub` reads what lies in the Hub's cache."
            )
        if not real.is_file():  # opening a pipe would wait for ever
            raise ArtifactError(f"{path}: is no plain file. Give the folder that `{writer}` wrote.")
        with real.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: no such file. Give the folder that `{writer}` wrote.") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise ArtifactError(f"{path}: cannot be read ({error}). Save it anew with `{writer}`.") from error


def _check_plain(value: Any) -> None:
    """Refuse text that no file can hold and nesting that no writer gives: what was read can be written again."""
    left = [(value, 0)]
    while left:
        each, depth = left.pop()
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} lists and dictionaries within each other")
        if isinstance(each, str):
            each.encode()
        elif isinstance(each, dict):
            left += [(part, depth + 1) for pair in each.items() for part in pair]
        elif isinstance(each, list):
            left += [(part, depth + 1) for part in each]


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of its tensors, and how many bytes it has for them."""
    if size > LARGEST_TENSORS:
        raise ValueError(f"{size:,} bytes, at most {LARGEST_TENSORS:,} can be read")
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _LARGEST_HEADER):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    header = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no dictionary")
    header.pop("__metadata__", None)
    return header, size - 8 - length


def _check_tensors(header: Mapping[str, Any], held: int, names: Collection[str]) -> None:
    """Refuse what the header alone shows to be wrong: other tensors, types that are not floating-point, sizes that lie."""
    for what, which in (("lacks", set(names) - set(header)), ("holds besides", set(header) - set(names))):
        if which:
            raise ValueError(f"it {what} {', '.join(map(brief, sorted(which)[:3]))}{' and others' if len(which) > 3 else ''}")
    for name, entry in header.items():
        dtype, shape = entry["dtype"], entry["shape"]
        if dtype not in _DTYPES:
            raise ValueError(f"{name} is of type {brief(dtype)}, none of {', '.join(_DTYPES)}")
        whole = isinstance(shape, list) and all(type(length) is int and length > 0 for length in shape)
        if not whole or len(shape) not in _DIMENSIONS:
            raise ValueError(f"{name} has the shape {brief(shape)}")
        held -= math.prod(shape) * _DTYPES[dtype]
    if held:
        raise ValueError(f"its tensors are {abs(held):,} bytes {'less' if held > 0 else 'more'} than the file holds")
