"""A file of questions and instructions, perhaps with the response to read after both prompts: JSON, one object a line, or CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

from psr_lens.datasets._files import json_lines, shown, text_of
from psr_lens.errors import InputError

_TEXTS: Final = {"question": True, "instruction": True, "response": False, "group": False}
"""Names of the fields that hold text, and whether each must be there."""
_SCORES: Final = ("trait", "coherence")
"""Names of the fields that hold a judge's score of the response."""


@dataclass(frozen=True)
class PairLine:
    """One line of the file."""

    question: str
    """The user's question."""
    instruction: str
    """What the prompted context adds."""
    response: str | None = None
    """The response; None to have the model give one under the instruction."""
    group: str = ""
    """The trait, or another group that it belongs to."""
    trait: float = 1.0
    """A judge's trait score of the response, in [0, 1]."""
    coherence: float = 1.0
    """A judge's coherence score of the response, in [0, 1]."""


def read_pairs(path: str | Path, instruction: str | None = None) -> list[PairLine]:
    r"""Read `{"question": …, "instruction": …, "response": …, "group": …}`, one a line; the last two may be left out.

    A file whose name ends in `.csv` is read as such: the first line has the names, an empty cell is a field that is left out. A response
    may have a judge's scores beside it, `"trait"` and `"coherence"`, from 0 to 1. Fields of other names are passed over, empty lines too.

    Args:
        path: The file.
        instruction: The instruction of lines that have none; without it, all must have one.

    Raises:
        InputError: no such file, no line in it, a line that is not such an object or row, or responses on some lines only.
    """
    path = Path(path)
    needed = [name for name, must in _TEXTS.items() if must and not (name == "instruction" and instruction is not None)]
    rows = _csv_rows(path, needed) if path.suffix.lower() == ".csv" else json_lines(path, "pairs")
    lines = [_line(where, {"instruction": instruction, **found} if instruction else found) for where, found in rows]
    if not lines:
        raise InputError("pairs", f"{path} without a line", "at least one pair")
    without = sum(line.response is None for line in lines)
    if 0 < without < len(lines):
        raise InputError(
            "pairs", f"{path} with a response on {len(lines) - without} of {len(lines)} lines", "one on every line or on none"
        )
    return lines


def _csv_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(StringIO(text_of(path, "pairs"), newline=""), strict=True)
    names: list[str] = []
    number = 0
    while True:
        where = f"{path}, line {number + 1}"  # a quoted cell may go on over several lines: this is where the row begins
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError("pairs", f"{where}: no CSV ({error})", "cells parted by commas, quoted where they hold one") from error
        number = reader.line_num
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = _names(where, cells, needed)
            continue
        if len(cells) != len(names):
            raise InputError("pairs", f"{where}: {len(cells)} cells", f"{len(names)}, as many as there are names in the first line")
        found: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}
        yield where, found | {name: _number(found[name]) for name in _SCORES if name in found}


def _names(where: str, cells: list[str], needed: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if any(name not in names for name in needed) or len(set(names)) < len(names):
        raise InputError(
            "pairs", f"{where}: the names {', '.join(map(repr, names))}", f"{' and '.join(needed)} among them, and none twice"
        )
    return names


def _number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell


def _line(where: str, found: dict[str, Any]) -> PairLine:
    values: dict[str, Any] = {}
    for name, needed in _TEXTS.items():
        value = found.get(name)
        if value is None and not needed:
            continue
        if not isinstance(value, str) or not (value.strip() or name == "group"):
            raise InputError("pairs", f"{where}: {name} is {shown(value)}", f"a text as {name}")
        values[name] = value
    for name in _SCORES:
        score = found.get(name, 1.0)
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise InputError("pairs", f"{where}: {name} is {shown(score)}", f"a number from 0 to 1 as {name}, or none")
        values[name] = float(score)
    return PairLine(**values)
