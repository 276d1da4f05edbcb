"""Judge of the language of the answer, by langdetect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import json_text
from psr_lens._utils.optional import versions
from psr_lens.errors import InputError
from psr_lens.judges.detected_language import known_languages, language_probabilities
from psr_lens.results.judgement import Judgement, check_texts


@dataclass(frozen=True)
class LanguageJudge:
    """Scores the trait by the probability of a language. Coherence is missing (NaN); `psr.judges.combine` adds a judge for it.

    Example:
        >>> psr.judges.language("fr")(["Le chat dort sur la chaise.", "The cat sleeps on the chair."], ["q", "q"]).reasons
        ('fr 1.00', 'en 1.00')
    """

    code: str
    """Code of the language, as langdetect spells it."""

    @property
    def identity(self) -> str:
        """What its scores depend on: the language, and the version of langdetect.

        Example:
            >>> psr.judges.language("fr").identity == psr.judges.language("de").identity
            False
        """
        return json_text({"judge": "language", "code": self.code, "versions": versions("langdetect")})

    def __call__(self, texts: Sequence[str], questions: Sequence[str]) -> Judgement:
        """Score each text; NaN for an empty text, and for one in which langdetect finds no letters that it knows.

        Raises:
            InputError: `texts` and `questions` differ in length.
        """
        check_texts(texts, questions)
        found = [language_probabilities(_in_small_letters(text)) for text in texts]
        return Judgement(
            trait=np.array([np.nan if each is None else 100 * min(1.0, each.get(self.code, 0.0)) for each in found], dtype=float),
            coherence=np.full(len(texts), np.nan),
            reasons=tuple(map(_reason, found)),
            gives=("trait",),
        )


def _in_small_letters(text: str) -> str:
    """The text with its words in capitals in small letters: langdetect skips words with two capitals in a row."""

    def small(word: re.Match[str]) -> str:
        return word.group().lower() if sum(map(str.isupper, word.group())) > 1 else word.group()

    return re.sub(r"\w+", small, text)


def _reason(found: dict[str, float] | None) -> str:
    if found is None:
        return "missing: the text gives no clue to its language"
    return ", ".join(f"{code} {probability:.2f}" for code, probability in found.items()) or "no language is likely"


@checks_arguments
def language(code: str) -> LanguageJudge:
    """Judge of the language: a text's score is 100 times the probability that langdetect gives to one language.

    Each text gets the same score every time, since the seed of langdetect's draws is fixed. A probability of at most 0.1 counts as 0, as
    langdetect does not report it. The probability is of the whole text: it says which language is likelier, not how much of the text is
    in it, so an answer that changes language half-way may score 0 or 100. Texts of a few words are often mistaken for another language.

    Example:
        >>> psr.judges.language("fr")(["Le chat dort sur la chaise."], ["where is the cat ?"]).trait.round()
        array([100.])

    Args:
        code: Code of the language in langdetect's spelling: the two letters of ISO 639-1, such as `"fr"`; `"zh-cn"` and `"zh-tw"`.

    Returns:
        A judge of the trait; its coherence is NaN.

    Raises:
        InputError: a language that langdetect does not know.
        MissingPackageError: langdetect is not installed (`pip install psr-lens[language]`).
    """
    if code not in (known := known_languages()):
        raise InputError("code", repr(code), f"one of {', '.join(known)}")
    return LanguageJudge(code)
