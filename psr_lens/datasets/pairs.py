"""A file of one JSON object a line: a question, an instruction, and perhaps the response to read after both prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
    """What the steered prompt adds."""
    response: str | None = None
    """The response; None to have the model give one under the instruction."""
    group: str = ""
    """The trait, or another group that it belongs to."""
    trait: float = 1.0
    """A judge's trait score of the response, in [0, 1]."""
    coherence: float = 1.0
    """A judge's coherence score of the response, in [0, 1]."""


def read_pairs(path: str | Path) -> list[PairLine]:
    r"""Read `{"question": …, "instruction": …, "response": …, "group": …}`, one a line; the last two may be left out.

    A response may have a judge's scores beside it, `"trait"` and `"coherence"`, from 0 to 1. Fields of other names are passed over, empty
    lines too.

    Raises:
        InputError: no such file, no line in it, a line that is not such an object, or responses on some lines only.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("pairs", f"{path} ({error})", "a file of UTF-8 text that can be read") from error
    lines = [_line(path, number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InputError("pairs", f"{path} without a line", "at least one pair")
    without = sum(line.response is None for line in lines)
    if 0 < without < len(lines):
        raise InputError(
            "pairs", f"{path} with a response on {len(lines) - without} of {len(lines)} lines", "one on every line or on none"
        )
    return lines


def _line(path: Path, number: int, line: str) -> PairLine:
    where = f"{path}, line {number}"
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise InputError("pairs", f"{where}: no JSON ({error})", "one JSON object a line") from error
    if not isinstance(found, dict):
        raise InputError("pairs", f"{where}: {type(found).__name__}", 'an object such as {"question": …, "instruction": …}')
    values: dict[str, Any] = {}
    for name, needed in _TEXTS.items():
        value = found.get(name)
        if value is None and not needed:
            continue
        if not isinstance(value, str) or not (value.strip() or name == "group"):
            raise InputError("pairs", f"{where}: {name} is {json.dumps(value)}", f"a text as {name}")
        values[name] = value
    for name in _SCORES:
        score = found.get(name, 1.0)
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise InputError("pairs", f"{where}: {name} is {json.dumps(score)}", f"a number from 0 to 1 as {name}, or none")
        values[name] = float(score)
    return PairLine(**values)
