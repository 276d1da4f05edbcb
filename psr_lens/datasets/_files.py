"""Reads files as UTF-8 text and lines as JSON objects; errors name the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from psr_lens.errors import InputError


def text_of(path: Path, argument: str) -> str:
    """A file's text, without the byte-order mark that some editors write.

    Raises:
        InputError: the file does not exist, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(argument, f"{path} ({error})", "a readable file of UTF-8 text") from error


def json_lines(path: Path, argument: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object per line, each with its file and line; empty lines are skipped.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object.
    """
    for number, line in enumerate(text_of(path, argument).split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, json_object(line, where, argument)


def json_object(text: str, where: str, argument: str) -> dict[str, Any]:
    """One JSON object.

    Raises:
        InputError: the text is not JSON, not an object, or an object with a duplicate name.
    """
    try:
        found: Any = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(argument, f"{where}: invalid JSON ({error})", "one JSON object") from error
    if not isinstance(found, dict):
        raise InputError(argument, f"{where}: {type(found).__name__}", 'an object, {"name": …}')
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} occurs twice in one object")
    return found


def text_field(found: Mapping[str, Any], name: str, where: str, argument: str) -> str:
    """A field that must hold a text that is not empty.

    Raises:
        InputError: the field is missing, not a text, or empty.
    """
    value = found.get(name)
    if not isinstance(value, str) or not value.strip():
        got = shown(value) if name in found else "missing"
        raise InputError(argument, f"{where}: {name} is {got}", f"a non-empty text as {name}")
    return value


def shown(value: object) -> str:
    """A value as JSON, shortened to 80 characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr).encode(errors="backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:79]}…"
