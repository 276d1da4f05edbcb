"""Settings from YAML files, with an error for unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from psr_lens.errors import InputError


def yaml_mapping(path: str | Path, example: str) -> dict[str, Any]:
    """Read a YAML (or JSON) file that holds a mapping.

    Args:
        path: The file.
        example: A line that it may have, shown in the error.

    Raises:
        InputError: the file cannot be read, or is not a mapping.
    """
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("config", f"{path} ({error})", "a readable YAML file") from error
    if not isinstance(given, dict):
        raise InputError(
            "config", f"{path}, which holds {type(given).__name__}", f"a mapping with one setting a line, e.g. {example}"
        )
    return given


def check_keys(where: str, given: Mapping[Any, Any], known: Sequence[str]) -> None:
    """Refuse unknown settings.

    Args:
        where: What the settings belong to, for the error.
        given: The settings, by name.
        known: The valid names.

    Raises:
        InputError: a setting has an unknown name.
    """
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"Did you mean {close[0]!r}?" if close else f"The settings are: {', '.join(known)}."
            raise InputError(where, f"the unknown setting {key!r}", "a known one", remedy)
