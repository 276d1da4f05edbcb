"""A file of questions: plain text with one a line, or the pairs that `read_pairs` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from psr_lens.datasets._files import text_of
from psr_lens.datasets.pairs import PairLine, read_pairs
from psr_lens.errors import InputError

_PAIRS: Final = (".jsonl", ".json", ".csv")


def read_questions(path: str | Path, instruction: str | None = None) -> list[PairLine]:
    """Read questions with their instructions.

    A file whose name ends in `.jsonl`, `.json` or `.csv` is read by `read_pairs`; any other is plain text, a question a line, empty lines
    passed over.

    Args:
        path: The file.
        instruction: The instruction of questions that have none of their own.

    Raises:
        InputError: no such file, no question in it, a line that cannot be read, or a question without an instruction.
    """
    path = Path(path)
    if path.suffix.lower() in _PAIRS:
        return read_pairs(path, instruction)
    questions = [line.strip() for line in text_of(path, "questions").splitlines() if line.strip()]
    if not questions:
        raise InputError("questions", f"{path} without a line", "at least one question, one a line")
    if instruction is None:
        raise InputError("instruction", None, f"the instruction for the questions of {path}", "For example 'Talk like a pirate.'")
    return [PairLine(question, instruction) for question in questions]
