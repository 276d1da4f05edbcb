"""The folder that a command writes its results to."""

from __future__ import annotations

from pathlib import Path

from psr_lens.errors import InputError


def check_folder(out: str | Path) -> Path:
    """The path of an output folder, which need not exist yet.

    Raises:
        InputError: the path is a file.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError("out", str(out), "a folder, or a path where one can be created", "A file is in the way.")
    return out
