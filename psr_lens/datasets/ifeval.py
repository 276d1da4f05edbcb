"""IFEval files with each prompt also without its instruction, as in microsoft/llm-steer-instruct (Stolfo et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from psr_lens.datasets._files import json_lines, shown, text_field
from psr_lens.errors import InputError

_READ: Final = ("key", "prompt", "prompt_without_instruction", "instruction_id_list", "kwargs")


@dataclass(frozen=True)
class Instruction:
    """One instruction whose following can be verified."""

    id: str
    """Its name, `keywords:existence` for one."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What it asks for, `{"keywords": ["mom"]}` for one."""


@dataclass(frozen=True)
class IfevalRow:
    """One line of the file."""

    key: int
    """Number of the prompt in IFEval that it was made from; several rows may share it."""
    prompted: str
    """The prompt with the instruction (`prompt`)."""
    base: str
    """The prompt without it (`prompt_without_instruction`); not always a part of the other, and often that of several rows."""
    instructions: tuple[Instruction, ...]
    """What the answer has to follow (`instruction_id_list` and `kwargs`)."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """All other fields of the line, as they are."""
    where: str = ""
    """File and line."""


def read_ifeval(path: str | Path) -> list[IfevalRow]:
    """Read `{"key": …, "prompt": …, "prompt_without_instruction": …, "instruction_id_list": […], "kwargs": [{…}]}`, one a line.

    Arguments that are null, as some copies of IFEval have them for every instruction, are left out. For prompt pairs:
    `psr.prompt_pairs_from_texts(model, [row.base for row in rows], [row.prompted for row in rows])`.

    Raises:
        InputError: no such file, no line in it, or a line that is not such an object.
    """
    path = Path(path)
    rows = [_row(where, found) for where, found in json_lines(path, "ifeval")]
    if not rows:
        raise InputError("ifeval", f"{path} without a line", "at least one row")
    return rows


def _row(where: str, found: dict[str, Any]) -> IfevalRow:
    key = found.get("key")
    if isinstance(key, bool) or not isinstance(key, int):
        raise InputError("ifeval", f"{where}: key is {shown(key) if 'key' in found else 'missing'}", "a whole number as key")
    ids, arguments = found.get("instruction_id_list"), found.get("kwargs")
    if not isinstance(ids, list) or not ids or not all(isinstance(each, str) for each in ids):
        raise InputError("ifeval", f"{where}: instruction_id_list is {shown(ids)}", "a list of at least one instruction's name")
    if not isinstance(arguments, list) or not all(isinstance(each, dict) for each in arguments):
        raise InputError("ifeval", f"{where}: kwargs is {shown(arguments)}", "a list of objects")
    if len(ids) != len(arguments):
        raise InputError("ifeval", f"{where}: {len(arguments)} kwargs for {len(ids)} instructions", "one object an instruction")
    instructions = (
        Instruction(name, {argument: value for argument, value in given.items() if value is not None})
        for name, given in zip(ids, arguments, strict=True)
    )
    return IfevalRow(
        key,
        text_field(found, "prompt", where, "ifeval"),
        text_field(found, "prompt_without_instruction", where, "ifeval"),
        tuple(instructions),
        {name: value for name, value in found.items() if name not in _READ},
        where,
    )
