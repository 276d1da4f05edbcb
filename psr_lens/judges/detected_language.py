"""The language of a text, detected by langdetect.

langdetect draws at random. Here it runs with a fixed seed in a factory of its own: a text always gets the same answer, and the seed of the
user's own langdetect is left alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from psr_lens._utils.optional import package

_SEED: Final = 0
_EXTRA: Final = "language"


def _languages(extra: str) -> Any:
    return _made_by(package("langdetect.detector_factory", extra))


@cache
def _made_by(module: Any) -> Any:
    factory = module.DetectorFactory()
    factory.seed = _SEED
    factory.load_profile(module.PROFILES_DIRECTORY)
    return factory


def need_languages(extra: str = _EXTRA) -> None:
    """Load langdetect's profiles, so that a missing package is reported now.

    Args:
        extra: The extra that the error names.

    Raises:
        MissingPackageError: langdetect is not installed.
    """
    _languages(extra)


def known_languages(extra: str = _EXTRA) -> list[str]:
    """The codes of the languages that can be detected, in langdetect's spelling (`en`, `zh-cn`); as for `need_languages`."""
    return sorted(_languages(extra).get_lang_list())


def language_probabilities(text: str, extra: str = _EXTRA) -> dict[str, float] | None:
    """The languages of a probability above 0.1, by code, the likeliest first; None if the text gives no clue, such as digits alone."""
    errors = package("langdetect.lang_detect_exception", extra)
    detector = _languages(extra).create()
    detector.append(text)
    try:
        return {str(each.lang): float(each.prob) for each in detector.get_probabilities()}
    except errors.LangDetectException:
        return None
