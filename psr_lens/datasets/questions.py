"""Questions: those that ship with the package, and files of them, plain text with one per line or what `read_pairs` reads."""

from __future__ import annotations

import random
from importlib.resources import files
from pathlib import Path
from typing import Final

from psr_lens._utils.arguments import checks_arguments
from psr_lens.datasets._files import text_of
from psr_lens.datasets.pairs import PairLine, read_pairs
from psr_lens.errors import InputError

_PAIRS: Final = (".jsonl", ".json", ".csv")


@checks_arguments
def read_questions(path: str | Path, instruction: str | None = None) -> list[PairLine]:
    r"""Read questions with their instructions.

    A file whose name ends in `.jsonl`, `.json` or `.csv` is read by `read_pairs`. Any other file is plain text with one question per line;
    empty lines are ignored.

    Args:
        path: The file.
        instruction: The instruction for questions without one of their own.

    Raises:
        InputError: the file is missing or empty, a line is invalid, or a question has no instruction.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("questions.txt").write_text("what is a bear ?\nwhat is a fox ?")
        >>> [line.question for line in psr.datasets.read_questions("questions.txt", "talk like a pirate .")]
        ['what is a bear ?', 'what is a fox ?']
    """
    path = Path(path)
    if path.suffix.lower() in _PAIRS:
        return read_pairs(path, instruction)
    questions = [line.strip() for line in text_of(path, "questions").splitlines() if line.strip()]
    if not questions:
        raise InputError("questions", f"{path}, which has no lines", "at least one question, one per line")
    if instruction is None:
        raise InputError("instruction", None, f"the instruction for the questions of {path}", "For example 'Talk like a pirate.'")
    return [PairLine(question, instruction) for question in questions]


@checks_arguments
def everyday_questions(count: int | None = None, *, seed: int = 0) -> list[str]:
    """Short questions on everyday matters, written for this package: what a chat model can answer in a few sentences.

    Args:
        count: How many; None for all 120 of them.
        seed: Seed of their order.

    Raises:
        InputError: more questions than there are, or fewer than one.

    Example:
        >>> len(psr.datasets.everyday_questions(100)), psr.datasets.everyday_questions(1)[0][-1]
        (100, '?')
    """
    every = files("psr_lens.datasets").joinpath("everyday_questions.txt").read_text(encoding="utf-8").splitlines()
    random.Random(seed).shuffle(every)
    if count is not None and not 1 <= count <= len(every):
        raise InputError(
            "count", count, f"a number from 1 to {len(every)}, or None for all", "`read_questions` reads a file of yours."
        )
    return every[:count]
