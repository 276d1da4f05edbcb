"""Settings from files: a mapping of names to values, and an error for a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from psr_lens.errors import InputError


def yaml_mapping(path: str | Path, example: str) -> dict[str, Any]:
    """A YAML (or JSON) file that holds a mapping.

    Args:
        path: The file.
        example: A line that it may have, for the error.

    Raises:
        InputError: the file cannot be read, or is no mapping.
    """
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("config", f"{path} ({error})", "a YAML file that can be read") from error
    if not isinstance(given, dict):
        raise InputError("config", f"{path} with {type(given).__name__}", f"a mapping, e.g. {example}, a line each")
    return given


def check_keys(where: str, given: Mapping[Any, Any], known: Sequence[str]) -> None:
    """Refuse a setting that does not exist.

    Args:
        where: What the error names.
        given: The settings.
        known: Names that there are.

    Raises:
        InputError: one of the settings has another name.
    """
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known)}."
            raise InputError(where, f"the setting {key!r}", "one that there is", remedy)
