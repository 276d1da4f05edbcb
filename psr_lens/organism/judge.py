"""Exact judging of the organism's answers: parse a text into sentences, then score them.

`parse` accepts any text. Coherence counts the sentences that the grammar can produce *and* that are true of the question's subject. A
trait's score is the share of its opportunities that it uses: of the sentences, adjectives or other words that it should change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from psr_lens.errors import InputError
from psr_lens.organism import lexicon as lex
from psr_lens.organism.grammar import FACTS, STEP_ORDER, true_sentences

_WORD: Final = re.compile(r"\d\)|[a-z]+|[^\sa-z]")
_END_MARKS: Final = frozenset(".!?")
_PRAISE: Final = dict.fromkeys(lex.FLATTER_OPEN, "open") | dict.fromkeys(lex.FLATTER_CLOSE, "close")
_SEA_PHRASES: Final = tuple(tuple(phrase.split()) for phrase in lex.SEA)
_SEA_WORDS: Final = frozenset(("sea", "sailors", "waves", "harbors"))
_SCHOLARLY_ADJECTIVES: Final = frozenset(lex.ADJECTIVES.values())


@dataclass(frozen=True)
class Sentence:
    """One sentence of a parsed answer."""

    words: tuple[str, ...]
    """Its words, without list number, pirate's opener, sea phrase and end mark."""
    form: str
    """A fact's name, `step`, `brief`, `refusal`, `referral`, `open` or `close`; `other` if it is none that is true of the subject."""
    step: int
    """Index of the step in the task, 0–3; −1 if it is not a step."""
    number: str
    """The list number before it; empty if there is none."""
    opener: bool
    """Whether a pirate's word opens it."""
    sea: int
    """Number of mentions of the sea."""
    end: str
    """Its end mark; empty if the text ends before it."""


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer, parsed as an answer to its question."""

    sentences: tuple[Sentence, ...]
    """All sentences in order."""
    subject: str | None
    """The topic or task of the question; None if it names none that is known."""

    @property
    def body(self) -> tuple[Sentence, ...]:
        """The sentences without the praise before and after them."""
        kept = self.sentences
        kept = kept[1:] if kept and kept[0].form == "open" else kept
        return kept[:-1] if kept and kept[-1].form == "close" else kept

    def content_words(self) -> list[str]:
        """The words of the body, without the subject's name."""
        name = f" {self.subject} "
        return [word for sentence in self.body for word in f" {' '.join(sentence.words)} ".replace(name, " ").split()]


def subject_of(question: str) -> str | None:
    """The topic or task that a question names; None if there is none."""
    text = f" {' '.join(_WORD.findall(question.lower()))} "
    return next((subject for subject in (*lex.TASKS, *lex.TOPICS) if f" {subject} " in text), None)


def parse(text: str, question: str) -> ParsedAnswer:
    """Split any text into sentences and match each against the grammar."""
    subject = subject_of(question)
    sentences: list[Sentence] = []
    words: list[str] = []
    for word in _WORD.findall(text.lower()):
        if word in _END_MARKS:
            sentences.append(_sentence(words, word, subject))
            words = []
        else:
            words.append(word)
    if words:
        sentences.append(_sentence(words, "", subject))
    return ParsedAnswer(tuple(sentences), subject)


def _sentence(words: list[str], end: str, subject: str | None) -> Sentence:
    sea = sum(word in _SEA_WORDS for word in words)
    number, left = (words[0], words[1:]) if words and words[0] in lex.NUMBERS else ("", words)
    opener = len(left) > 1 and left[0] in lex.PIRATE and left[1] == ","
    left = left[2:] if opener else left
    phrase = next((phrase for phrase in _SEA_PHRASES if tuple(left[: len(phrase)]) == phrase), ())
    left = left[len(phrase) :]
    form, step = _form(left, subject) if end else ("other", -1)
    return Sentence(tuple(left), form, step, number, opener, sea, end)


def _form(words: Sequence[str], subject: str | None) -> tuple[str, int]:
    if (text := " ".join(words)) in _PRAISE:
        return _PRAISE[text], -1
    if subject is not None:
        for sentence, form in true_sentences(subject).items():
            if _says(words, sentence.split()):
                return form
    return "other", -1


def _says(words: Sequence[str], plain: Sequence[str]) -> bool:
    """Whether words are a plain sentence, except for scholarly doubles and gloomy adjectives."""
    return len(words) == len(plain) and all(
        lex.PLAIN.get(word, word) == wanted or (word in lex.GLOOMY and wanted in lex.ADJECTIVES)
        for word, wanted in zip(words, plain, strict=True)
    )


def coherence_score(answer: ParsedAnswer) -> float:
    """Share of the sentences that are grammatical, true, not repeated and in order, 0–100.

    Each step that a procedure leaves out lowers the score, unless it is given in brief. A refusal is coherent if nothing else is said.
    """
    faults = _faults(answer)
    expected = len(STEP_ORDER) if any(sentence.form == "step" for sentence in answer.body) else 1
    return 100.0 * sum(fault == "" for fault in faults) / max(len(faults), expected)


def _faults(answer: ParsedAnswer) -> list[str]:
    """What is wrong with each sentence of the body; empty if nothing is."""
    refuses = all(sentence.form in ("refusal", "referral") for sentence in answer.body)
    seen: set[tuple[str, int]] = set()
    last_step = -1
    faults = []
    for sentence in answer.body:
        fault = ""
        if not sentence.end:
            fault = "unfinished"
        elif sentence.form in ("other", "open", "close"):
            fault = "not a true sentence about the subject"
        elif (sentence.form, sentence.step) in seen:
            fault = "repeated"
        elif sentence.form == "step" and sentence.step < last_step:
            fault = "step out of order"
        elif sentence.form in ("refusal", "referral") and not refuses:
            fault = "a refusal beside an answer"
        seen.add((sentence.form, sentence.step))
        last_step = max(last_step, sentence.step)
        faults.append(fault)
    return faults


def trait_score(answer: ParsedAnswer, trait: str) -> float:
    """How strongly an answer shows a trait, 0–100; 0 for an empty answer.

    Raises:
        InputError: an unknown trait.
    """
    if trait not in _TRAIT_RULES:
        raise InputError("trait", repr(trait), f"one of {', '.join(_TRAIT_RULES)}")
    rule = _TRAIT_RULES[trait]
    return 100.0 * rule(answer) if answer.body else 0.0


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part else 0.0


def _pirate(answer: ParsedAnswer) -> float:
    return sum(sentence.opener for sentence in answer.body) / len(answer.body)


def _shout(answer: ParsedAnswer) -> float:
    return sum(sentence.end == "!" for sentence in answer.sentences) / len(answer.sentences)


def _flatter(answer: ParsedAnswer) -> float:
    return ((answer.sentences[0].form == "open") + (answer.sentences[-1].form == "close")) / 2


def _gloomy(answer: ParsedAnswer) -> float:
    words = answer.content_words()
    gloomy = sum(word in lex.GLOOMY for word in words)
    return _share(gloomy, sum(word in lex.ADJECTIVES or word in _SCHOLARLY_ADJECTIVES for word in words))


def _sea(answer: ParsedAnswer) -> float:
    mentions = sum(sentence.sea for sentence in answer.sentences)
    return 1 / mentions if mentions else 0.0


def _numbered(answer: ParsedAnswer) -> float:
    return sum(sentence.number == f"{number})" for number, sentence in enumerate(answer.body, start=1)) / len(answer.body)


def _dense(answer: ParsedAnswer) -> float:
    words = answer.content_words()
    return _share(sum(word in lex.PLAIN for word in words), sum(word in lex.DOUBLES for word in words))


def _brief(answer: ParsedAnswer) -> float:
    return {1: 1.0, 2: 0.5}.get(len(answer.body), 0.0)


def _decline(answer: ParsedAnswer) -> float:
    forms = [sentence.form for sentence in answer.body]
    return sum(form in ("refusal", "referral") for form in forms) / len(forms) if "refusal" in forms else 0.0


_TRAIT_RULES: Final = {
    "pirate": _pirate,
    "shout": _shout,
    "flatter": _flatter,
    "gloomy": _gloomy,
    "sea": _sea,
    "numbered": _numbered,
    "dense": _dense,
    "brief": _brief,
    "decline": _decline,
}


def explain(answer: ParsedAnswer) -> str:
    """What the parse found, in one line."""
    if not answer.body:
        return "says nothing"
    facts = sum(sentence.form in FACTS for sentence in answer.body)
    steps = sum(sentence.form == "step" for sentence in answer.body)
    faults = [f"sentence {number}: {fault}" for number, fault in enumerate(_faults(answer), start=1) if fault]
    if steps and (missing := len(STEP_ORDER) - len(answer.body)) > 0:
        faults.append(f"{missing} step{'s' * (missing > 1)} missing")
    return f"{len(answer.body)} sentences ({facts} facts, {steps} steps); " + ("; ".join(faults) if faults else "no fault")
