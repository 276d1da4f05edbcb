"""Reads a score from a reply.

| reply | read as |
|---|---|
| `85`, `85.`, `85%`, `**85**`, `８５`, `+85`, `85.5` | the number |
| `Score: 85`, `85/100`, `I'd say 85 out of 100`, `{"score": 85}`, `On a scale of 0-100: 85` | 85 |
| `3 metaphors. Score: 85`, `4 of 5 are good: 85/100` | 85: a number with a label or over 100 takes precedence |
| `<think>… 30? …</think>85` | 85: reasoning is skipped |
| `REFUSAL`, ` refusal.`, `REFUSAL, but 85` | missing, a refusal |
| `-5`, `101` | missing, outside 0–100 |
| `8/10`, `4 out of 5` | missing, another scale |
| `80-90`, `80 or 90` | missing, two numbers |
| `1,000`, `85,5`, `1.2.3`, `1e1`, `1e9` | missing, not a plain number |
| the empty text, `eighty`, `٨٥`, `85th`, `.5` | missing, no number |

Nothing is guessed: `0.85` is 0.85, because it lies on the requested scale.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from psr_lens._utils.short_text import on_one_line

_NARROW: Final = str.maketrans("０１２３４５６７８９．，／－：％−", "0123456789.,/-:%-")
_NUMBER: Final = re.compile(r"(?<![^\W_])(?<!\.)[-+]?([0-9]++(?:[.,][0-9]++)*+(?:[eE][-+]?[0-9]++)?+)(?![^\W_])")
_PLAIN: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_MARKS: Final = r"[\s*_`\"'()\[\]]*"
_OVER: Final = re.compile(rf"%?{_MARKS}(?:/|\b(?:out\s+)?of\b){_MARKS}", re.IGNORECASE)
_RANGE: Final = re.compile(rf"{_MARKS}(?:[-–—]|\bto\b){_MARKS}", re.IGNORECASE)
_LABEL: Final = re.compile(r"(?:score|rating|grade)(?:\s+(?:is|of|would\s+be))?[\s*_`\"'()\[\]<>:=-]*$", re.IGNORECASE)
_THINKING: Final = re.compile(r"\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_REFUSAL: Final = re.compile(r"\bREFUSAL\b")
_EDGES: Final = string.whitespace + string.punctuation
_LABEL_ROOM: Final = 40


@dataclass(frozen=True)
class Number:
    """A score read from a reply."""

    score: float
    """0–100; NaN if there is no score."""
    reason: str
    """What the score was read from, or why it is missing."""
    digits: str = ""
    """The number as written; empty if no number can be the score."""
    start: int = 0
    """Index in the reply of the first digit."""

    @property
    def end(self) -> int:
        """Index in the reply after the last digit."""
        return self.start + len(self.digits)


def read_number(reply: str) -> Number:
    """Read the score from a reply by the table at the top of this file; never raises."""
    text = reply.translate(_NARROW)
    if thinking := _THINKING.match(text):
        if not thinking[0].endswith("</think>"):
            return _missing("ended in the middle of its reasoning", reply)
        text = " " * thinking.end() + text[thinking.end() :]  # so that indices stay valid
    if _REFUSAL.search(text) or text.strip(_EDGES).casefold() == "refusal":
        return _missing("is a refusal", reply)
    numbers = list(_NUMBER.finditer(text))
    scale, hundred, other = _scales(text, numbers)
    candidates = [index for index in range(len(numbers)) if index not in scale]
    chosen = [index for index in candidates if index in hundred or _is_labelled(text, numbers[index])] or candidates
    if not chosen:
        return _missing("has no number" if text.strip() else "is empty", reply)
    number = numbers[chosen[0]]
    if len({numbers[index][0].lstrip("+") for index in chosen}) > 1:
        return _missing("has more than one number", reply, number)
    if chosen[0] in other:
        return _missing("is on another scale than 0–100", reply, number)
    if not _PLAIN.fullmatch(number[1]):
        return _missing("has no plain number", reply, number)
    score = float(number[0])
    if not 0 <= score <= 100:
        return _missing("is outside 0–100", reply, number)
    # Adding 0.0 turns −0.0 into 0.0.
    return Number(score + 0.0, f"read from {on_one_line(reply)!r}", number[1], number.start(1))


def _scales(text: str, numbers: Sequence[re.Match[str]]) -> tuple[set[int], set[int], set[int]]:
    """Indices of the numbers that only name a scale, of those out of 100, and of those out of something else."""
    scale: set[int] = set()
    hundred: set[int] = set()
    other: set[int] = set()
    for index, (left, right) in enumerate(pairwise(numbers)):
        between = text[left.end() : right.start(1)]
        if index not in scale and _OVER.fullmatch(between):
            scale.add(index + 1)
            (hundred if right[1] == "100" else other).add(index)
        elif _RANGE.fullmatch(between) and left[1] in ("0", "1") and right[1] == "100":
            scale.update((index, index + 1))
    return scale, hundred, other


def _is_labelled(text: str, number: re.Match[str]) -> bool:
    return _LABEL.search(text[max(0, number.start() - _LABEL_ROOM) : number.start()]) is not None


def _missing(why: str, reply: str, number: re.Match[str] | None = None) -> Number:
    found = (number[1], number.start(1)) if number else ("", 0)
    return Number(math.nan, f"missing: the reply {on_one_line(reply)!r} {why}", *found)
