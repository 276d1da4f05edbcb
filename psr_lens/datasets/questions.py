"""Files of questions: plain text with one question per line, or a file that `read_pairs` reads."""

from __future__ import annotations

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
