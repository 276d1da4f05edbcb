"""Settings from YAML files, and the error for an unknown setting, from a file or in Python."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from psr_lens.errors import InputError

Value = TypeVar("Value")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's safe loader, but a key that occurs twice is an error: PyYAML takes the last one and says nothing."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping as it is written; keys that come from another by `<<` may be written again."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            written = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if written in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice in one mapping", key.start_mark)
            if written is not None:
                seen.add(written)
        return node


def yaml_mapping(path: str | Path, example: str) -> dict[str, Any]:
    """Read a YAML (or JSON) file that holds a mapping.

    Args:
        path: The file.
        example: A line that the file may have, for the error.

    Raises:
        InputError: the file cannot be read, holds no mapping, or names a setting twice.
    """
    try:
        given = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("config", f"{path} ({error})", "a readable YAML file") from error
    if not isinstance(given, dict):
        raise InputError("config", f"{path} with {type(given).__name__}", f"a mapping with one setting per line, such as {example}")
    return given


def by_text(given: Mapping[Any, Value], argument: str) -> dict[str, Value]:
    """A mapping with its names as text.

    Raises:
        InputError: two names are the same text, such as 1 and "1".
    """
    found: dict[str, Value] = {}
    for name, value in given.items():
        if str(name) in found:
            raise InputError(argument, f"the name {str(name)!r} twice", "different names", f"One of them is {name!r}.")
        found[str(name)] = value
    return found


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
