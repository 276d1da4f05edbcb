"""IFEval's 25 verifiable instructions (Zhou et al. 2023, arXiv 2311.07911), each decided as in google-research/instruction_following_eval.

A check takes a text and returns what is wrong with it, in a few words; the empty string means that the instruction is followed. Every
check runs in time linear in the text. Differences from the original: keywords, markers and section names are matched literally (the
original reads them as regular expressions); a missing argument is an error (the original draws one at random); JSON may contain numbers
of any length; and JSON nested too deeply to be parsed counts as invalid instead of crashing.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from psr_lens._utils.short_text import on_one_line
from psr_lens.errors import InputError
from psr_lens.judges import ifeval_text

Check = Callable[[str], str]
"""Returns what is wrong with a text; the empty string if nothing is."""

_ANSWERS: Final = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_PUNCTUATION: Final = frozenset(".,?!'\"")


def check_for(instruction_id: str, arguments: Mapping[str, Any]) -> Check:
    """The check of one instruction.

    Raises:
        InputError: an unknown instruction, or missing, unknown or invalid arguments.
        MissingPackageError: the instruction needs a package that is not installed (`pip install psr-lens[ifeval]`).
    """
    if instruction_id not in CHECKS:
        raise InputError("instruction", repr(instruction_id), f"one of {', '.join(CHECKS)}")
    make = CHECKS[instruction_id]
    needed = list(inspect.signature(make).parameters)
    if sorted(arguments) != sorted(needed):
        got = ", ".join(sorted(arguments)) or "no arguments"
        raise InputError(f"arguments of {instruction_id}", got, ", ".join(needed) or "none")
    return make(**arguments)


# --- checking arguments -----------------------------------------------------------------------------------------------------


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or not float(value).is_integer():
        raise InputError(name, repr(value), "a whole number, 0 or more")
    return int(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(name, repr(value), "a non-empty text")
    return value


def _texts(name: str, value: object) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise InputError(name, repr(value), "a list of one or more texts")
    return sorted({_text(name, each) for each in value})


def _bound(relation: object, threshold: object, name: str) -> Callable[[int, str], str]:
    """A function that takes a count and the name of what was counted, and returns what is wrong with the count."""
    limit = _count(name, threshold)
    if relation not in ("less than", "at least"):
        raise InputError("relation", repr(relation), "'less than' or 'at least'")

    def fault(count: int, things: str) -> str:
        return "" if (count < limit) == (relation == "less than") else f"{count} {things}, not {relation} {limit}"

    return fault


def _quoted(text: str) -> str:
    return repr(on_one_line(text, 40))


# --- keywords ---------------------------------------------------------------------------------------------------------------


def _existence(keywords: object) -> Check:
    patterns = {keyword: re.compile(re.escape(keyword), re.IGNORECASE) for keyword in _texts("keywords", keywords)}

    def check(text: str) -> str:
        missing = [keyword for keyword, pattern in patterns.items() if not pattern.search(text)]
        return f"without {', '.join(map(_quoted, missing))}" if missing else ""

    return check


def _frequency(keyword: object, frequency: object, relation: object) -> Check:
    word = _text("keyword", keyword).strip()
    pattern, bound = re.compile(re.escape(word), re.IGNORECASE), _bound(relation, frequency, "frequency")
    return lambda text: bound(len(pattern.findall(text)), f"times {_quoted(word)}")


def _forbidden_words(forbidden_words: object) -> Check:
    # Word boundaries as in the original's \b, which means the same for words that begin and end with a letter or digit.
    words = _texts("forbidden_words", forbidden_words)
    patterns = {word: re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in words}

    def check(text: str) -> str:
        there = [word for word, pattern in patterns.items() if pattern.search(text)]
        return f"with {', '.join(map(_quoted, there))}" if there else ""

    return check


def _letter_frequency(letter: object, let_frequency: object, let_relation: object) -> Check:
    wanted = _text("letter", letter).strip().lower()
    if len(wanted) != 1:
        raise InputError("letter", repr(letter), "one letter")
    bound = _bound(let_relation, let_frequency, "let_frequency")
    return lambda text: bound(Counter(text.lower())[wanted], f"times the letter {_quoted(wanted)}")


# --- language and letter case -----------------------------------------------------------------------------------------------


def _response_language(language: object) -> Check:
    wanted = _text("language", language)
    if wanted not in (known := ifeval_text.known_languages()):
        raise InputError("language", repr(language), f"one of {', '.join(known)}")
    return lambda text: _other_language(text, wanted)


def _other_language(text: str, wanted: str) -> str:
    found = ifeval_text.language_of(text)  # None: no language was detected, which the original accepts as any language
    return "" if found in (wanted, None) else f"in the language {found!r}, not {wanted!r}"


def _english_capital() -> Check:
    ifeval_text.need_languages()
    return lambda text: _other_language(text, "en") if text.isupper() else "not all in capital letters"


def _english_lowercase() -> Check:
    ifeval_text.need_languages()
    return lambda text: _other_language(text, "en") if text.islower() else "not all in lowercase letters"


def _capital_word_frequency(capital_frequency: object, capital_relation: object) -> Check:
    ifeval_text.need_sentences()
    bound = _bound(capital_relation, capital_frequency, "capital_frequency")
    return lambda text: bound(ifeval_text.capital_words(text), "words in capital letters")


# --- length -----------------------------------------------------------------------------------------------------------------


def _number_sentences(num_sentences: object, relation: object) -> Check:
    ifeval_text.need_sentences()
    bound = _bound(relation, num_sentences, "num_sentences")
    return lambda text: bound(ifeval_text.sentence_count(text), "sentences")


def _number_words(num_words: object, relation: object) -> Check:
    bound = _bound(relation, num_words, "num_words")
    return lambda text: bound(len(re.findall(r"\w+", text)), "words")


def _number_paragraphs(num_paragraphs: object) -> Check:
    wanted = _count("num_paragraphs", num_paragraphs)

    def check(text: str) -> str:
        paragraphs = [paragraph.strip() for paragraph in text.split("***")]
        if not all(paragraphs[1:-1]):
            return "an empty paragraph between two ***"
        found = sum(map(bool, paragraphs))
        return "" if found == wanted else f"{found} paragraphs separated by ***, not {wanted}"

    return check


def _nth_paragraph_first_word(num_paragraphs: object, nth_paragraph: object, first_word: object) -> Check:
    wanted, nth = _count("num_paragraphs", num_paragraphs), _count("nth_paragraph", nth_paragraph)
    first = _text("first_word", first_word).lower()
    if not 1 <= nth <= wanted:
        raise InputError("nth_paragraph", nth, f"from 1 to num_paragraphs, {wanted}")

    def check(text: str) -> str:
        paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
        found = sum(map(bool, paragraphs))
        if found != wanted:
            return f"{found} paragraphs, not {wanted}"
        word = _first_word(paragraphs[nth - 1])
        return "" if word == first else f"paragraph {nth} begins with {_quoted(word)}, not {_quoted(first)}"

    return check


def _first_word(paragraph: str) -> str:
    words = paragraph.split(maxsplit=1)
    word = words[0].lstrip("'").lstrip('"') if words else ""
    end = next((index for index, letter in enumerate(word) if letter in _PUNCTUATION), len(word))
    return "".join(letter.lower() for letter in word[:end])


# --- content and format -----------------------------------------------------------------------------------------------------


def _number_placeholders(num_placeholders: object) -> Check:
    bound = _bound("at least", num_placeholders, "num_placeholders")
    return lambda text: bound(sum(map(_placeholders, text.split("\n"))), "placeholders in [brackets]")


def _placeholders(line: str) -> int:
    """Number of bracketed parts of a line; unlike a regular expression, linear in its length where brackets are never closed."""
    count = start = 0
    while (opened := line.find("[", start)) >= 0 and (closed := line.find("]", opened)) >= 0:
        count, start = count + 1, closed + 1
    return count


def _postscript(postscript_marker: object) -> Check:
    marker = _text("postscript_marker", postscript_marker).strip()
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = re.compile(patterns.get(marker, re.escape(marker.lower())))
    return lambda text: "" if pattern.search(text.lower()) else f"without {_quoted(marker)}"


def _number_bullet_lists(num_bullets: object) -> Check:
    wanted = _count("num_bullets", num_bullets)
    # Of what the original's ^\s* matches, only blanks on the bullet's own line matter. The character after * may be the line break.
    star, dash = re.compile(r"^[^\S\n]*\*[^*].*$", re.MULTILINE), re.compile(r"^[^\S\n]*-.*$", re.MULTILINE)

    def check(text: str) -> str:
        found = len(star.findall(text)) + len(dash.findall(text))
        return "" if found == wanted else f"{found} bullet points, not {wanted}"

    return check


def _constrained_response() -> Check:
    return lambda text: "" if any(answer in text for answer in _ANSWERS) else f"none of {', '.join(map(repr, _ANSWERS))}"


def _number_highlighted_sections(num_highlights: object) -> Check:
    bound = _bound("at least", num_highlights, "num_highlights")

    def check(text: str) -> str:
        single = [found.strip("*") for found in re.findall(r"\*[^\n*]*\*", text)]
        double = [found[2:-2] for found in re.findall(r"\*\*[^\n*]*\*\*", text)]
        return bound(sum(bool(each.strip()) for each in single + double), "*highlighted* sections")

    return check


def _multiple_sections(section_spliter: object, num_sections: object) -> Check:
    name = _text("section_spliter", section_spliter).strip()
    pattern, bound = re.compile(rf"{re.escape(name)}\s?\d+"), _bound("at least", num_sections, "num_sections")
    return lambda text: bound(len(pattern.findall(text)), f"sections '{name} X'")


def _json_format() -> Check:
    def check(text: str) -> str:
        text = text.strip()
        for fence in ("```json", "```Json", "```JSON", "```"):
            text = text.removeprefix(fence)
        try:
            json.loads(text.removesuffix("```").strip(), parse_int=str)  # numbers of any length
        except ValueError as error:
            return f"invalid JSON: {error}"
        except RecursionError:
            return "JSON nested too deeply to be parsed"
        return ""

    return check


def _title() -> Check:
    def has_title(line: str) -> bool:
        opened, closed = line.find("<<"), line.rfind(">>")
        return 0 <= opened < closed - 2 and bool(line[opened : closed + 2].lstrip("<").rstrip(">").strip())

    return lambda text: "" if any(map(has_title, text.split("\n"))) else "no <<title>>"


# --- the answer as a whole --------------------------------------------------------------------------------------------------


def _two_responses() -> Check:
    def check(text: str) -> str:
        parts = [part.strip() for part in text.split("******")]
        if not all(parts[1:-1]):
            return "an empty response between two ******"
        responses = [part for part in parts if part]
        if len(responses) != 2:
            return f"{len(responses)} responses separated by ******, not 2"
        return "both responses are the same" if responses[0] == responses[1] else ""

    return check


def _repeat_prompt(prompt_to_repeat: object) -> Check:
    prompt = _text("prompt_to_repeat", prompt_to_repeat).strip().lower()
    return lambda text: "" if text.strip().lower().startswith(prompt) else f"does not begin with {_quoted(prompt)}"


def _end_checker(end_phrase: object) -> Check:
    phrase = _text("end_phrase", end_phrase).strip().lower()
    return lambda text: "" if text.strip().strip('"').lower().endswith(phrase) else f"does not end with {_quoted(phrase)}"


def _quotation() -> Check:
    def check(text: str) -> str:
        text = text.strip()
        return "" if len(text) > 1 and text[0] == text[-1] == '"' else "not in double quotation marks"

    return check


def _no_comma() -> Check:
    return lambda text: f"{text.count(',')} commas" if "," in text else ""


CHECKS: Final[Mapping[str, Callable[..., Check]]] = {
    "keywords:existence": _existence,
    "keywords:frequency": _frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
}
"""Instruction ids and the functions that build their checks from the arguments in a row's `kwargs`."""
