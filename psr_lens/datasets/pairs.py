"""Files of questions and instructions, optionally with responses and their scores: JSON Lines or CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

from psr_lens._utils.arguments import checks_arguments
from psr_lens.datasets._files import json_lines, shown, text_of
from psr_lens.errors import InputError

_TEXTS: Final = {"question": True, "instruction": True, "response": False, "group": False}
"""Names of the text fields, and whether each is required."""
_SCORES: Final = ("trait", "coherence")
"""Names of the fields with a judge's scores of the response, 0–100."""


@dataclass(frozen=True)
class PairLine:
    """One line of the file.

    Example:
        >>> psr.datasets.PairLine("what is a bear ?", "talk like a pirate .").trait
        100.0
    """

    question: str
    """The user's question."""
    instruction: str
    """What the prompt with the instruction adds."""
    response: str | None = None
    """The response; None to sample one under the instruction."""
    group: str = ""
    """The trait, or another group that the line belongs to."""
    trait: float = 100.0
    """A judge's trait score of the response, 0–100."""
    coherence: float = 100.0
    """A judge's coherence score of the response, 0–100."""


@checks_arguments
def read_pairs(path: str | Path, instruction: str | None = None) -> list[PairLine]:
    r"""Read a file with `{"question": …, "instruction": …, "response": …, "group": …}` per line; the last two fields are optional.

    A response may have a judge's scores, `"trait"` and `"coherence"`, 0–100; without them, it has 100. A file whose name ends in `.csv` has
    the names in its first line, and an empty cell is a field that is left out. Other fields and empty lines are ignored.

    Args:
        path: The file.
        instruction: The instruction for lines without one; if None, every line must have one.

    Raises:
        InputError: the file is missing or empty, a line is invalid, or only some of the lines have a response.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("pairs.jsonl").write_text('{"question": "what is a bear ?", "response": "arr .", "trait": 80}')
        >>> [line] = psr.datasets.read_pairs("pairs.jsonl", instruction="talk like a pirate .")
        >>> line.response, line.trait
        ('arr .', 80.0)
    """
    path = Path(path)
    needed = [name for name, required in _TEXTS.items() if required and not (name == "instruction" and instruction is not None)]
    rows = _csv_rows(path, needed) if path.suffix.lower() == ".csv" else json_lines(path, "pairs")
    lines = [_line(where, {"instruction": instruction, **found} if instruction else found) for where, found in rows]
    if not lines:
        raise InputError("pairs", f"{path}, which has no lines", "at least one pair")
    without = sum(line.response is None for line in lines)
    if 0 < without < len(lines):
        raise InputError(
            "pairs",
            f"{path} with a response on {len(lines) - without} of {len(lines)} lines",
            "a response on every line or on none",
        )
    return lines


def _csv_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(StringIO(text_of(path, "pairs"), newline=""), strict=True)
    names: list[str] = []
    number = 0
    while True:
        where = f"{path}, line {number + 1}"  # where the row begins: a quoted cell may span several lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(
                "pairs", f"{where}: invalid CSV ({error})", "cells separated by commas, and quoted if they contain one"
            ) from error
        number = reader.line_num
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = _names(where, cells, needed)
            continue
        if len(cells) != len(names):
            raise InputError("pairs", f"{where}: {len(cells)} cells", f"{len(names)}, one for each name in the first line")
        found: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}
        yield where, found | {name: _number(found[name]) for name in _SCORES if name in found}


def _names(where: str, cells: list[str], needed: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if any(name not in names for name in needed) or len(set(names)) < len(names):
        raise InputError(
            "pairs", f"{where}: the names {', '.join(map(repr, names))}", f"{' and '.join(needed)} among them, and no duplicates"
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
            raise InputError("pairs", f"{where}: {name} is {shown(value)}", f"a non-empty text as {name}")
        values[name] = value
    for name in _SCORES:
        score = found.get(name, 100.0)
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 100:
            raise InputError("pairs", f"{where}: {name} is {shown(score)}", f"a number from 0 to 100 as {name}, or no such field")
        values[name] = float(score)
    return PairLine(**values)
