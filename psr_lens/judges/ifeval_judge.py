"""Judge of IFEval's verifiable instructions: whether an answer follows them is decided by rule, so it needs no model and no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np

from psr_lens.datasets import IfevalRow, Instruction
from psr_lens.errors import InputError
from psr_lens.judges.ifeval_checks import Check, check_for
from psr_lens.judges.texts import shortened
from psr_lens.results.judgement import Judgement

Accuracy = Literal["strict", "loose"]
"""`strict`: the answer as it is; `loose`: any of eight versions, without first line, last line, both or neither, with asterisks or not."""

Score = Literal["all", "share"]
"""`all`: 100 where every instruction is followed, else 0 (prompt level); `share`: the share of them that is (instruction level)."""

_EMPTY: Final = "the answer is empty"


@dataclass(frozen=True)
class Verdict:
    """Whether one text follows one instruction."""

    instruction: str
    """The instruction's name."""
    strict: bool
    """Whether the text as it is follows it; an empty one never does."""
    loose: bool
    """Whether one of the eight versions of the text follows it."""
    fault: str
    """What is wrong with the text as it is; empty where nothing is."""


@dataclass(frozen=True)
class IfevalAccuracy:
    """The four numbers that IFEval reports, in per cent."""

    prompt_strict: float
    """Answers that follow all of their instructions."""
    instruction_strict: float
    """Instructions that are followed."""
    prompt_loose: float
    """Answers that follow all of their instructions in one version or another."""
    instruction_loose: float
    """Instructions that are followed in one version or another."""
    n: int
    """Number of answers."""


@dataclass(frozen=True)
class _Task:
    """What one answer has to follow."""

    instructions: tuple[Instruction, ...]
    checks: tuple[Check, ...]

    def faults(self, text: str, accuracy: Accuracy) -> list[str]:
        """What is wrong with the text in the eyes of each instruction."""
        found = [check(text) if text.strip() else _EMPTY for check in self.checks]
        if accuracy == "strict":
            return found
        return ["" if not fault or _loosely(check, text) else fault for check, fault in zip(self.checks, found, strict=True)]

    def verdicts(self, text: str) -> tuple[Verdict, ...]:
        found = zip(self.instructions, self.checks, self.faults(text, "strict"), strict=True)
        return tuple(Verdict(each.id, not fault, not fault or _loosely(check, text), fault) for each, check, fault in found)


def _loosely(check: Check, text: str) -> bool:
    return any(version.strip() and not check(version) for version in versions(text))


def versions(text: str) -> Iterator[str]:
    """The eight versions of a text of which the loose accuracy takes the best, the text itself first; each one only once."""
    lines = text.split("\n")
    cut = ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))
    whole = (text, *cut)
    yield from dict.fromkeys((*whole, *(version.replace("*", "") for version in whole)))


class IfevalJudge:
    """Scores the trait by IFEval's rules; coherence is missing, which `psr.judges.combine` can fill in."""

    def __init__(self, tasks: Sequence[_Task], questions: Sequence[tuple[str, str]], accuracy: Accuracy, score: Score) -> None:
        """Keep one task a row, and each row's two prompts by which it is found; without prompts the one task is for every text."""
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

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text by the instructions of the row that it answers.

        Texts in the order of the judge's rows are matched in that order. In any other order, or for some of the rows only, each is found
        by its question, the row's prompt with or without the instruction.

        Raises:
            InputError: not one question a text, a question of no row, or one that stands in rows with different instructions.
        """
        tasks = self._tasks_of(texts, questions)
        faults = [task.faults(text, self.accuracy) for task, text in zip(tasks, texts, strict=True)]
        of_text = np.mean if self.score == "share" else np.all
        return Judgement(
            np.array([100.0 * of_text([not fault for fault in each]) for each in faults], dtype=float),
            np.full(len(texts), np.nan),
            tuple(_reason(task, each) for task, each in zip(tasks, faults, strict=True)),
        )

    def verdicts(self, texts: Sequence[str], questions: Sequence[str]) -> list[tuple[Verdict, ...]]:
        """What each text does with each of its instructions, in the order of the row.

        Raises:
            InputError: as when the judge is called.
        """
        return [task.verdicts(text) for task, text in zip(self._tasks_of(texts, questions), texts, strict=True)]

    def measure(self, texts: Sequence[str], questions: Sequence[str]) -> IfevalAccuracy:
        """Strict and loose accuracy over all texts, by prompt and by instruction; NaN where there are no texts.

        Raises:
            InputError: as when the judge is called.
        """
        judged = self.verdicts(texts, questions)
        each = [verdict for verdicts in judged for verdict in verdicts]
        return IfevalAccuracy(
            _percent([all(verdict.strict for verdict in verdicts) for verdicts in judged]),
            _percent([verdict.strict for verdict in each]),
            _percent([all(verdict.loose for verdict in verdicts) for verdicts in judged]),
            _percent([verdict.loose for verdict in each]),
            len(texts),
        )

    def _tasks_of(self, texts: Sequence[str], questions: Sequence[str]) -> Sequence[_Task]:
        if isinstance(texts, str) or len(texts) != len(questions):
            got = "one string" if isinstance(texts, str) else f"{len(questions)} for {len(texts)} texts"
            raise InputError("questions", got, "as many questions as texts")
        if not self._orders:
            return self._tasks * len(questions)
        if list(questions) in self._orders:
            return self._tasks
        return [self._task_of(place, question) for place, question in enumerate(questions)]

    def _task_of(self, place: int, question: str) -> _Task:
        found = self._by_question.get(question, [])
        if len(found) == 1:
            return found[0]
        shown = repr(shortened(question))
        if not found:
            raise InputError(f"questions[{place}]", shown, f"a prompt of one of the judge's {len(self._tasks)} rows")
        raise InputError(
            f"questions[{place}]",
            f"{shown}, which stands in rows with {len(found)} different instructions",
            "a question of one row, or all of the judge's rows in their order",
            "Make a judge of the very rows that the texts answer, in the same order.",
        )


def _reason(task: _Task, faults: Sequence[str]) -> str:
    named = [f"{each.id}: {fault}" for each, fault in zip(task.instructions, faults, strict=True) if fault]
    return "; ".join(named) or "all instructions are followed"


def _percent(followed: Sequence[bool]) -> float:
    return 100.0 * float(np.mean(followed)) if followed else float("nan")


def ifeval(
    instructions: str | Sequence[IfevalRow], *, accuracy: Accuracy = "strict", score: Score = "all", **arguments: Any
) -> IfevalJudge:
    """Judge of IFEval's verifiable instructions (Zhou et al. 2023, arXiv 2311.07911), decided as the original code does.

    `ifeval(rows)`, with rows from `psr.datasets.read_ifeval`, looks at each text for what its row asks for.
    `ifeval("keywords:existence", keywords=["mom"])` looks at every text for the same.

    Args:
        instructions: Rows, or one instruction's name; `psr_lens.judges.ifeval_checks.CHECKS` has all 25.
        accuracy: `"strict"` or `"loose"`.
        score: The trait's score where a row has several instructions: `"all"`, 100 if all are followed and else 0, or their `"share"`.
        **arguments: What the one instruction asks for, by the names in IFEval's `kwargs`; none with rows.

    Returns:
        A judge of the trait, with `measure(texts, questions)` for IFEval's four numbers; its coherence is NaN.

    Raises:
        InputError: no rows, an unknown instruction, or arguments that are not what the instruction needs.
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
    tasks = [_task(place, row) for place, row in enumerate(instructions)]
    return IfevalJudge(tasks, [(row.base, row.prompted) for row in instructions], accuracy, score)


def _task(place: int, row: IfevalRow) -> _Task:
    if not isinstance(row, IfevalRow):
        raise InputError(f"instructions[{place}]", type(row).__name__, "a row", "`psr.datasets.read_ifeval` reads them.")
    if not row.instructions:
        raise InputError(f"instructions[{place}]", "a row without an instruction", "at least one")
    try:
        return _Task(row.instructions, tuple(check_for(each.id, each.arguments) for each in row.instructions))
    except InputError as error:
        got = f"{row.where or 'a row'} ({str(error).rstrip('.')})"
        raise InputError(f"instructions[{place}]", got, "instructions of IFEval with the arguments that they need") from error
