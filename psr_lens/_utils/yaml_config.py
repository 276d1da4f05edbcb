"""Settings from YAML files, and the error for an unknown setting, from a file or in Python."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from psr_lens.errors import InputError


def yaml_mapping(path: str | Path, example: str) -> dict[str, Any]:
    """Read a YAML (or JSON) file that holds a mapping.

    Args:
        path: The file.
        example: A line that the file may have, for the error.

    Raises:
        InputError: the file cannot be read, or does not hold a mapping.
    """
    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("config", f"{path} ({error})", "a readable YAML file") from error
    if not isinstance(given, dict):
        raise InputError("config", f"{path} with {type(given).__name__}", f"a mapping with one setting per line, such as {example}")
    return given


class UnknownSettingError(InputError):
    """A setting with a name that does not exist."""

    def __init__(self, message: str) -> None:
        """Take the whole message: unlike other invalid input, the name alone is at fault, not a value."""
        super(InputError, self).__init__(message)


def check_keys(where: str, given: Mapping[Any, Any], known: Sequence[str]) -> None:
    """Refuse unknown settings.

    Args:
        where: What the settings belong to; the error begins with it.
        given: The settings.
        known: The names of all settings.

    Raises:
        InputError: an unknown setting; the message suggests the closest known name, or lists them all.
    """
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"Did you mean {close[0]!r}?" if close else f"Known settings: {', '.join(known)}."
            raise UnknownSettingError(f"{where}: unknown setting {key!r}. {remedy}")


class KnownSettings:
    """Base of the dataclasses of settings: an unknown name is refused as it is in a YAML file."""

    def __new__(cls, *values: Any, **settings: Any) -> Any:
        """Check the names; the dataclass itself takes the values.

        Raises:
            InputError: an unknown setting.
        """
        check_keys(cls.__name__, settings, [each.name for each in fields(cls) if each.init])  # type: ignore[arg-type]
        return super().__new__(cls)
