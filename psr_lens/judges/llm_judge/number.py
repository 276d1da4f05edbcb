"""Reading a score out of a reply.

| reply | read as |
|---|---|
| `85`, `85.`, `85%`, `**85**`, `８５`, `+85`, `85.5` | the number |
| `Score: 85`, `85/100`, `I'd say 85 out of 100`, `{"score": 85}`, `On a scale of 0-100: 85` | 85 |
| `3 metaphors. Score: 85`, `4 of 5 are good: 85/100` | 85: a number with a label or over 100 goes before others |
| `<think>… 30? …</think>85` | 85: thinking is left out |
| `REFUSAL`, ` refusal.`, `REFUSAL, but 85` | missing, a refusal |
| `-5`, `101` | missing, outside 0–100 |
| `8/10`, `4 out of 5` | missing, another scale |
| `80-90`, `80 or 90` | missing, two numbers |
| `1,000`, `85,5`, `1.2.3`, `1e1`, `1e9` | missing, no plain number |
| the empty text, `eighty`, `٨٥`, `85th`, `.5` | missing, no number |

Nothing is guessed: `0.85` is 0.85, since it lies on the scale that was asked for.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from psr_lens.judges.texts import shortened

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
    """What was read out of a reply."""

    score: float
    """0–100; NaN if there is no score."""
    reason: str
    """Where the score comes from, or why there is none."""
    digits: str = ""
    """The number as it was written; empty if none was found that could be the score."""
    start: int = 0
    """Where the digits begin in the reply."""

    @property
    def end(self) -> int:
        """Where the digits end in the reply."""
        return self.start + len(self.digits)


def read_number(reply: str) -> Number:
    """Read the score out of a reply, by the table at the head of this file; never raises, whatever the reply."""
    text = reply.translate(_NARROW)
    if thinking := _THINKING.match(text):
        if not thinking[0].endswith("</think>"):
            return _missing("broke off while it was thinking", reply)
        text = " " * thinking.end() + text[thinking.end() :]  # so that places stay where they are
    if _REFUSAL.search(text) or text.strip(_EDGES).casefold() == "refusal":
        return _missing("is a refusal", reply)
    numbers = list(_NUMBER.finditer(text))
    scale, hundred, other = _scales(text, numbers)
    candidates = [place for place in range(len(numbers)) if place not in scale]
    chosen = [place for place in candidates if place in hundred or _is_labelled(text, numbers[place])] or candidates
    if not chosen:
        return _missing("has no number" if text.strip() else "is empty", reply)
    number = numbers[chosen[0]]
    if len({numbers[place][0].lstrip("+") for place in chosen}) > 1:
        return _missing("has more than one number", reply, number)
    if chosen[0] in other:
        return _missing("is on another scale than 0–100", reply, number)
    if not _PLAIN.fullmatch(number[1]):
        return _missing("has no plain number", reply, number)
    score = float(number[0])
    if not 0 <= score <= 100:
        return _missing("is outside 0–100", reply, number)
    # Adding 0.0 turns −0.0 into 0.0.
    return Number(score + 0.0, f"read from {shortened(reply)!r}", number[1], number.start(1))


def _scales(text: str, numbers: Sequence[re.Match[str]]) -> tuple[set[int], set[int], set[int]]:
    """Places of the numbers that only name a scale, of those that are over 100, and of those that are over something else."""
    scale: set[int] = set()
    hundred: set[int] = set()
    other: set[int] = set()
    for place, (left, right) in enumerate(pairwise(numbers)):
        between = text[left.end() : right.start(1)]
        if place not in scale and _OVER.fullmatch(between):
            scale.add(place + 1)
            (hundred if right[1] == "100" else other).add(place)
        elif _RANGE.fullmatch(between) and left[1] in ("0", "1") and right[1] == "100":
            scale.update((place, place + 1))
    return scale, hundred, other


def _is_labelled(text: str, number: re.Match[str]) -> bool:
    return _LABEL.search(text[max(0, number.start() - _LABEL_ROOM) : number.start()]) is not None


def _missing(why: str, reply: str, number: re.Match[str] | None = None) -> Number:
    found = (number[1], number.start(1)) if number else ("", 0)
    return Number(math.nan, f"missing: the reply {shortened(reply)!r} {why}", *found)
