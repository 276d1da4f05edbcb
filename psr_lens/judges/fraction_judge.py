"""Exact judge of form and vocabulary: the share of a text's parts that match a regular expression."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Literal

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import json_text
from psr_lens._utils.short_text import on_one_line
from psr_lens.errors import InputError
from psr_lens.results.judgement import Judgement, check_texts

Unit = Literal["words", "letters", "characters", "sentences", "lines", "text"]
"""The parts of a text. Words are runs of letters, digits and underscores, with single apostrophes and hyphens inside them; characters are
all but white space; a sentence has a letter, and ends after `.`, `!`, `?` or `…` (with closing quotes and brackets) before white space, or
with its line; lines are those that are not blank; the text is one part, unless it is blank."""

_SENTENCE: Final = re.compile(r"[^\s.!?…](?:[^.!?…\n]|[.!?…]+(?=[\"'”’)\]*_]*[^\s.!?…\"'”’)\]*_]))*(?:[.!?…]+[\"'”’)\]*_]*)?")

_WHOLE: Final = ("words", "letters", "characters")
"""Parts that have to match as a whole; in the others the pattern is searched for."""

_MOST_QUOTED: Final = 5


@dataclass(frozen=True)
class FractionJudge:
    """Scores the trait by the share of matching parts. Coherence is missing (NaN); `psr.judges.combine` adds a judge for it.

    Example:
        >>> psr.judges.fraction(r"(?i)arr|ahoy|matey")(["Arr, it is big, matey.", "carry it"], ["q", "q"]).reasons
        ("2 of 5 words match: 'Arr', 'matey'", '0 of 2 words match')
    """

    pattern: str
    """The regular expression, in the syntax of Python's `re`."""
    of: Unit
    """What the share is of."""
    _compiled: re.Pattern[str] = field(repr=False, compare=False)

    @property
    def identity(self) -> str:
        """What its scores depend on: the pattern and the parts.

        Example:
            >>> psr.judges.fraction("[A-Z]", of="letters").identity
            '{"judge":"fraction","of":"letters","pattern":"[A-Z]"}'
        """
        return json_text({"judge": "fraction", "pattern": self.pattern, "of": self.of})

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text; NaN where there is no part to match, as in an empty text.

        Raises:
            InputError: `texts` and `questions` differ in length.
        """
        check_texts(texts, questions)
        matches = self._compiled.fullmatch if self.of in _WHOLE else self._compiled.search
        parts = [_parts(text, self.of) for text in texts]
        matching = [[each for each in some if matches(each)] for some in parts]
        shares = [100 * len(some) / len(every) if every else np.nan for some, every in zip(matching, parts, strict=True)]
        return Judgement(
            trait=np.array(shares, dtype=float),
            coherence=np.full(len(texts), np.nan),
            reasons=tuple(self._reason(some, len(every)) for some, every in zip(matching, parts, strict=True)),
            gives=("trait",),
        )

    def _reason(self, matching: Sequence[str], count: int) -> str:
        if self.of == "text":
            return "missing: the text is empty" if not count else f"the text {'matches' if matching else 'does not match'}"
        if not count:
            return f"missing: the text has no {self.of}"
        quoted = [repr(on_one_line(each, 30)) for each in dict.fromkeys(matching)]
        shown = [*quoted[:_MOST_QUOTED], *["…"] * (len(quoted) > _MOST_QUOTED)]
        return f"{len(matching)} of {count} {self.of} match" + (f": {', '.join(shown)}" if shown else "")


@cache
def _word() -> re.Pattern[str]:
    r"""A word; unlike `\w` alone, with the marks that many scripts write as characters of their own, such as the vowels of Hindi."""
    marks = "".join(each for each in map(chr, range(0x10000)) if unicodedata.category(each)[0] == "M")
    return re.compile(rf"[\w{marks}]+(?:['’‐-][\w{marks}]+)*")


def _parts(text: str, of: Unit) -> list[str]:
    if of == "words":
        return _word().findall(text)
    if of == "sentences":
        found = (each.group().strip() for each in _SENTENCE.finditer(text))
        return [each for each in found if any(map(str.isalpha, each))]
    if of == "lines":
        return [line for line in text.splitlines() if line.strip()]
    if of == "text":
        return [text] if text.strip() else []
    return [each for each in text if (each.isalpha() if of == "letters" else not each.isspace())]


@checks_arguments
def fraction(pattern: str, of: Unit = "words") -> FractionJudge:
    r"""Judge by a regular expression: a text's score is the percentage of its words, sentences or other parts that match.

    A word, letter or character has to match as a whole: `arr` does not match the word `carry`. In a sentence, a line or the text, the
    pattern may match anywhere; `^` and `$` are its two ends. Patterns distinguish capitals unless they begin with `(?i)`.

    Example:
        >>> capitals = psr.judges.fraction("[A-Z]", of="letters")
        >>> bullets = psr.judges.fraction(r"^\s*[-*•] ", of="lines")
        >>> pirates = psr.judges.fraction(r"(?i)\b(arr|ahoy|matey|ye)\b", of="sentences")
        >>> [float(each(["ARR, it is\n- old\n- GREY, matey!"], ["q"]).trait[0].round(1)) for each in (capitals, bullets, pirates)]
        [36.8, 66.7, 66.7]

    Args:
        pattern: A regular expression, in the syntax of Python's `re`.
        of: What the share is of: `"words"`, `"letters"`, `"characters"` (other than white space), `"sentences"`, `"lines"` (other than
            blank ones), or `"text"`, for 100 or 0.

    Returns:
        A judge of the trait; its coherence is NaN.

    Raises:
        InputError: an empty or invalid pattern.
    """
    if not pattern:
        raise InputError("pattern", "an empty text", "a regular expression", "An empty one would match everything.")
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError("pattern", f"{pattern!r} ({error})", "a regular expression in the syntax of Python's `re`") from error
    return FractionJudge(pattern, of, compiled)
