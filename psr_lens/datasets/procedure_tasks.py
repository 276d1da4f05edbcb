"""Small multi-step tasks, made from a seed, with the one right answer to each, so that an error in any step shows in the result.

They are checked by rules that look for the result alone: an answer in capitals, in other words, or as a pirate would give it, is right if
its result is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, get_args

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError

ProcedureKind = Literal["transform", "sort", "count", "compute", "run"]
"""`transform`: change a word step by step; `sort`: words in alphabetical order; `count`: letters in a sentence; `compute`: arithmetic step
by step; `run`: what a few lines of Python print."""

KINDS: Final[tuple[ProcedureKind, ...]] = get_args(ProcedureKind)

_WORDS: Final = (
    *(
        "anchor",
        "basket",
        "candle",
        "desert",
        "engine",
        "forest",
        "garden",
        "hammer",
        "island",
        "jacket",
        "kettle",
        "ladder",
        "market",
    ),
    *(
        "needle",
        "orange",
        "pencil",
        "rabbit",
        "saddle",
        "tunnel",
        "valley",
        "window",
        "bridge",
        "copper",
        "dinner",
        "feather",
        "button",
    ),
)
_MOST: Final = 500
"""Most tasks; there are not many more programs of this kind."""

_NUMBER: Final = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})*(?![\w])(?!\.\d)")


@dataclass(frozen=True)
class Procedure:
    """One task.

    Example:
        >>> task = psr.datasets.Procedure("Start with 3. Add 4.", "7", "compute")
        >>> task.is_right("Arr, it be 7, matey!"), task.is_right("3 + 4 = 8")
        (True, False)
    """

    question: str
    """What is asked."""
    answer: str
    """The result: a number, a word, or words with a space between them."""
    kind: ProcedureKind
    """The kind of task."""

    @checks_arguments
    def is_right(self, text: str) -> bool:
        """Whether an answer has the right result.

        A number is right if it is the last one in the answer; a word if it stands in it as a word; words if they stand in their order,
        with at most punctuation and one word or number of up to three characters between two of them. Capitals do not count.

        Example:
            >>> psr.datasets.Procedure("Sort them: fox, bear, cat", "bear cat fox", "sort").is_right("Bear, cat and fox!")
            True
        """
        if self.answer.lstrip("-").isdigit():
            found = _NUMBER.findall(text)
            return bool(found) and int(found[-1].replace(",", "").replace("−", "-")) == int(self.answer)
        between = r"[\W_]+(?:\w{1,3}[\W_]+)?"
        words = between.join(map(re.escape, self.answer.split()))
        return re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE) is not None


@checks_arguments
def procedures(n: int = 50, seed: int = 0) -> list[Procedure]:
    """Tasks of five kinds in turn, all different, the same for the same seed; their text is English, and comes with no other licence.

    Example:
        >>> [task.kind for task in psr.datasets.procedures(5)]
        ['transform', 'sort', 'count', 'compute', 'run']
        >>> print(psr.datasets.procedures(4)[3].question)
        Start with ...

    Args:
        n: Number of tasks.
        seed: Seed of the draws.

    Raises:
        InputError: fewer than one task or more than 500, or a negative seed.
    """
    if not 1 <= n <= _MOST:
        raise InputError("n", n, f"a number from 1 to {_MOST}")
    if seed < 0:
        raise InputError("seed", seed, "0 or more")
    rng = random.Random(seed)
    found: dict[str, Procedure] = {}
    while len(found) < n:
        kind = KINDS[len(found) % len(KINDS)]
        question, answer = _MAKERS[kind](rng)
        task = Procedure(question, answer, kind)
        if not task.is_right(question) and not re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", question):  # an echo is never right
            found.setdefault(question, task)
    return list(found.values())


def _transform(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(_WORDS)
    old, new = rng.choice(word), rng.choice("kvwxz")
    steps: list[tuple[str, Callable[[str], str]]] = [
        ("reverse it", lambda text: text[::-1]),
        (f'replace every "{old}" with "{new}"', lambda text: text.replace(old, new)),
        ("move its first letter to the end", lambda text: text[1:] + text[0]),
        ("remove its last letter", lambda text: text[:-1]),
        ("write its first letter twice", lambda text: text[0] + text),
        (f'add "{new}" at the end', lambda text: text + new),
    ]
    chosen = rng.sample(steps, 3)
    result = word
    for _, change in chosen:
        result = change(result)
    told = "; ".join(f"{number}) {step}" for number, (step, _) in enumerate(chosen, start=1))
    return f'Take the word "{word}" and do these steps in order: {told}. Say the resulting word.', result


def _sort(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(_WORDS, 4)
    return f"Put these words into alphabetical order: {', '.join(words)}.", " ".join(sorted(words))


def _count(rng: random.Random) -> tuple[str, str]:
    words = rng.sample(_WORDS, 3)
    letter = rng.choice("aenrt")
    return f'How many times does the letter "{letter}" occur in "{" ".join(words)}"?', str(" ".join(words).count(letter))


def _compute(rng: random.Random) -> tuple[str, str]:
    result = rng.randint(2, 12)
    told = [f"Start with {result}."]
    for _ in range(3):
        by = rng.randint(2, 9)
        words, result = rng.choice(
            ((f"Add {by}.", result + by), (f"Multiply by {by}.", result * by), (f"Subtract {by}.", result - by))
        )
        told.append(words)
    return f"{' '.join(told)} Say the resulting number.", str(result)


def _run(rng: random.Random) -> tuple[str, str]:
    start, times, step, least = rng.randint(1, 5), rng.randint(2, 4), rng.randint(2, 5), rng.randint(6, 14)
    value = start
    for _ in range(times):
        value = value + step if value < least else value - 1
    code = f"x = {start}\nfor i in range({times}):\n    if x < {least}:\n        x = x + {step}\n    else:\n        x = x - 1\nprint(x)"
    return f"What does this Python program print?\n\n{code}", str(value)


_MAKERS: Final[dict[ProcedureKind, Callable[[random.Random], tuple[str, str]]]] = {
    "transform": _transform,
    "sort": _sort,
    "count": _count,
    "compute": _compute,
    "run": _run,
}
