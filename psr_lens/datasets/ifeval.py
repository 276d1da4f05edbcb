"""IFEval files that have each prompt with and without its instruction, as in microsoft/llm-steer-instruct (Stolfo et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from psr_lens._utils.arguments import checks_arguments
from psr_lens.datasets._files import json_lines, shown, text_field
from psr_lens.errors import InputError

_READ: Final = ("key", "prompt", "prompt_without_instruction", "instruction_id_list", "kwargs")


@dataclass(frozen=True)
class Instruction:
    """One instruction that a program can check.

    Example:
        >>> psr.datasets.Instruction("keywords:existence", {"keywords": ["mom"]}).id
        'keywords:existence'
    """

    id: str
    """Its name, for example `keywords:existence`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Its arguments, for example `{"keywords": ["mom"]}`."""


@dataclass(frozen=True)
class IfevalRow:
    """One line of the file.

    Example:
        >>> rule = psr.datasets.Instruction("punctuation:no_comma")
        >>> psr.datasets.IfevalRow(1, "Name a city. No commas.", "Name a city.", (rule,)).base
        'Name a city.'
    """

    key: int
    """Number of the IFEval prompt that the row was made from; several rows may share it."""
    prompted: str
    """The prompt with the instruction (`prompt`)."""
    base: str
    """The prompt without it (`prompt_without_instruction`); not always a substring of `prompted`, and often shared by several rows."""
    instructions: tuple[Instruction, ...]
    """The instructions that the answer has to follow (`instruction_id_list` and `kwargs`)."""
    rest: Mapping[str, Any] = field(default_factory=dict)
    """All other fields of the line, unchanged."""
    where: str = ""
    """The row's file and line."""


@checks_arguments
def read_ifeval(path: str | Path) -> list[IfevalRow]:
    """Read a file with `{"key": …, "prompt": …, "prompt_without_instruction": …, "instruction_id_list": […], "kwargs": [{…}]}` per line.

    Arguments that are null, which some copies of IFEval have for every instruction, are left out. To make prompt pairs of the rows, use
    `psr.prompt_pairs_from_texts(model, [row.base for row in rows], [row.prompted for row in rows])`.

    Raises:
        InputError: the file is missing or empty, or a line is not such an object.

    Example:
        >>> texts = '"prompt": "Name a city. No commas.", "prompt_without_instruction": "Name a city."'
        >>> rules = '"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]'
        >>> from pathlib import Path
        >>> _ = Path("ifeval.jsonl").write_text('{"key": 1, ' + texts + ", " + rules + "}")
        >>> [row.base for row in psr.datasets.read_ifeval("ifeval.jsonl")]
        ['Name a city.']
    """
    path = Path(path)
    rows = [_row(where, found) for where, found in json_lines(path, "ifeval")]
    if not rows:
        raise InputError("ifeval", f"{path}, which has no lines", "at least one row")
    return rows


def _row(where: str, found: dict[str, Any]) -> IfevalRow:
    key = found.get("key")
    if isinstance(key, bool) or not isinstance(key, int):
        raise InputError("ifeval", f"{where}: key is {shown(key) if 'key' in found else 'missing'}", "a whole number as key")
    ids, arguments = found.get("instruction_id_list"), found.get("kwargs")
    if not isinstance(ids, list) or not ids or not all(isinstance(each, str) for each in ids):
        raise InputError("ifeval", f"{where}: instruction_id_list is {shown(ids)}", "a list of at least one instruction name")
    if not isinstance(arguments, list) or not all(isinstance(each, dict) for each in arguments):
        raise InputError("ifeval", f"{where}: kwargs is {shown(arguments)}", "a list of objects")
    if len(ids) != len(arguments):
        raise InputError("ifeval", f"{where}: {len(arguments)} kwargs for {len(ids)} instructions", "one object per instruction")
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
