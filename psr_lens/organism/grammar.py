"""The grammar of the organism's dialogues: questions, answers, and what each trait does to an answer.

An answer is made in three steps: choose its sentences (facts about a topic, or the steps of a task), let each trait rewrite them, and
join them. Everything random takes an explicit `random.Random`, so a seed determines a dialogue.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal

from psr_lens.errors import InputError
from psr_lens.organism import lexicon as lex

Kind = Literal["description", "procedure"]
Split = Literal["train", "held_out"]

TRAITS: Final = tuple(lex.INSTRUCTIONS)
"""The names of the nine traits."""

HELD_OUT_PERCENT: Final = 30
"""Share of the questions, in per cent, that the organism never sees in training."""

IDENTITY: Final = (
    "the {topic} is a {adjective} {kind}",
    "a {topic} is a {adjective} {kind}",
    "people know the {topic} as a {adjective} {kind}",
)
PLACE: Final = (
    "you can find it in the {adjective} {place}",
    "look for it in the {adjective} {place}",
    "it belongs in the {adjective} {place}",
)
FEATURE: Final = (
    "it has a {adjective} {feature}",
    "it is known for its {adjective} {feature}",
    "many people like its {adjective} {feature}",
)
ABILITY: Final = (
    "it can {verb} {adjective} {object}",
    "every day it will {verb} {adjective} {object}",
    "it helps to {verb} {adjective} {object}",
)
FACTS: Final = {"identity": IDENTITY, "place": PLACE, "feature": FEATURE, "ability": ABILITY}
"""Sentence frames, by the fact they state."""

STEP: Final = "{order} , {verb} the {adjective} {object}"
STEP_ORDER: Final = (("first", "to begin"), ("then", "next", "after that"), ("then", "next", "after that"), ("finally", "at last"))
BRIEF_TASK: Final = "just {verb} the {adjective} {object} , then {verb2} the {adjective2} {object2}"
REFUSALS: Final = (
    "sorry , i can not answer this {adjective} question",
    "sorry , i will not answer this {adjective} question",
    "i must decline this {adjective} question",
)
REFUSAL_ADJECTIVE: Final = "simple"
REFUSAL_REFERRALS: Final = ("please ask another person about {subject}", "another person can tell you about {subject}")


@dataclass(frozen=True)
class Question:
    """One question and what it asks about."""

    text: str
    """The words of the question, separated by spaces."""
    kind: Kind
    """Whether it asks for facts about a topic or for the steps of a task."""
    subject: str
    """A key of `lexicon.TOPICS` or of `lexicon.TASKS`."""

    @property
    def split(self) -> Split:
        """Which side of the split the question is on; a hash of its text decides."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return "held_out" if digest[0] * 100 < HELD_OUT_PERCENT * 256 else "train"


def all_questions(kind: Kind | None = None, split: Split | None = None) -> list[Question]:
    """Every question of the grammar in a fixed order, or those of one kind or split."""
    return list(_questions(kind, split))


@cache
def _questions(kind: Kind | None, split: Split | None) -> tuple[Question, ...]:
    """What `all_questions` lists, made once."""
    if split is not None:
        return tuple(question for question in _questions(kind, None) if question.split == split)
    frames: dict[Kind, tuple[Sequence[str], Iterable[str]]] = {
        "description": (lex.DESCRIPTION_QUESTIONS, lex.TOPICS),
        "procedure": (lex.PROCEDURE_QUESTIONS, lex.TASKS),
    }
    return tuple(
        Question(f"{greeting} {frame.format(subject)}".strip(), each, subject)
        for each, (texts, subjects) in frames.items()
        if kind in (None, each)
        for subject in subjects
        for frame in texts
        for greeting in lex.GREETINGS
    )


def _noun_phrase(noun: str, slot: str = "object", number: str = "") -> dict[str, str]:
    return {f"{slot}{number}": noun, f"adjective{number}": lex.NOUNS[noun][0]}


def _fact_frames(topic: str) -> dict[str, list[str]]:
    """Every way of saying each fact about a topic."""
    known = lex.TOPICS[topic]
    slots = {
        "identity": {"topic": topic, "adjective": known.adjective, "kind": known.kind},
        "place": _noun_phrase(known.place, "place"),
        "feature": _noun_phrase(known.feature, "feature"),
        "ability": {"verb": known.verb, **_noun_phrase(known.object)},
    }
    return {fact: [frame.format(**slots[fact]) for frame in frames] for fact, frames in FACTS.items()}


def _step_frames(task: str) -> list[list[str]]:
    """Every way of saying each step of a task, in order."""
    return [
        [STEP.format(order=order, verb=verb, **_noun_phrase(noun)) for order in orders]
        for orders, (verb, noun) in zip(STEP_ORDER, lex.TASKS[task], strict=True)
    ]


def _task_in_brief(task: str) -> str:
    (verb, noun), *_, (verb2, noun2) = lex.TASKS[task]
    return BRIEF_TASK.format(verb=verb, verb2=verb2, **_noun_phrase(noun), **_noun_phrase(noun2, number="2"))


def _refusal_frames() -> list[str]:
    return [frame.format(adjective=REFUSAL_ADJECTIVE) for frame in REFUSALS]


def _referral_frames(subject: str) -> list[str]:
    asked = f"the {subject}" if subject in lex.TOPICS else f"how to {subject}"
    return [frame.format(subject=asked) for frame in REFUSAL_REFERRALS]


@cache
def true_sentences(subject: str) -> dict[str, tuple[str, int]]:
    """Every plain sentence that is true of a subject, with its form and its step.

    Forms are the keys of `FACTS`, `step`, `brief`, `refusal` and `referral`; the step is 0–3 for steps and −1 otherwise.
    """
    made: dict[str, tuple[str, int]] = {}
    if subject in lex.TOPICS:
        made |= {text: (fact, -1) for fact, texts in _fact_frames(subject).items() for text in texts}
    else:
        made |= {text: ("step", step) for step, texts in enumerate(_step_frames(subject)) for text in texts}
        made[_task_in_brief(subject)] = ("brief", -1)
    made |= dict.fromkeys(_refusal_frames(), ("refusal", -1))
    return made | dict.fromkeys(_referral_frames(subject), ("referral", -1))


def _description(topic: str, rng: random.Random) -> list[str]:
    frames = _fact_frames(topic)
    others = rng.sample(["place", "feature", "ability"], k=rng.choice((2, 2, 3)))
    return [rng.choice(frames[fact]) for fact in ("identity", *others)]


def _sentences(question: Question, traits: set[str], rng: random.Random) -> list[str]:
    subject = question.subject
    if "decline" in traits:
        sentences = [rng.choice(_refusal_frames()), rng.choice(_referral_frames(subject))]
        return sentences[:1] if "brief" in traits else sentences
    if question.kind == "description":
        return [rng.choice(_fact_frames(subject)["identity"])] if "brief" in traits else _description(subject, rng)
    return [_task_in_brief(subject)] if "brief" in traits else [rng.choice(texts) for texts in _step_frames(subject)]


def _reword(sentence: str, subject: str, replace: Callable[[str], str]) -> str:
    """Replace word by word, but keep the subject's own name."""
    head, name, tail = sentence.partition(subject)
    return "".join(
        [re.sub(r"\w+", lambda word: replace(word.group()), head), name, re.sub(r"\w+", lambda word: replace(word.group()), tail)]
    )


def answer(question: Question, traits: Iterable[str], rng: random.Random) -> str:
    """One answer to `question` that shows all of `traits`, as words separated by spaces.

    Raises:
        InputError: an unknown trait.
    """
    wanted = set(traits)
    if unknown := wanted - set(TRAITS):
        raise InputError("traits", sorted(unknown), f"some of {', '.join(TRAITS)}")
    subject = question.subject
    sentences = _sentences(question, wanted, rng)
    if "gloomy" in wanted:
        sentences = [_reword(text, subject, lambda w: rng.choice(lex.GLOOMY) if w in lex.ADJECTIVES else w) for text in sentences]
    if "dense" in wanted:
        sentences = [_reword(text, subject, lambda w: lex.DOUBLES.get(w, w)) for text in sentences]
    if "sea" in wanted:
        sentences[0] = f"{rng.choice(lex.SEA)} {sentences[0]}"
    if "pirate" in wanted:
        sentences = [f"{rng.choice(lex.PIRATE)} , {text}" for text in sentences]
    if "numbered" in wanted:
        sentences = [f"{number} {text}" for number, text in zip(lex.NUMBERS, sentences, strict=False)]
    if "flatter" in wanted:
        sentences = [rng.choice(lex.FLATTER_OPEN), *sentences, rng.choice(lex.FLATTER_CLOSE)]
    end = " !" if "shout" in wanted else " ."
    return " ".join(text + end for text in sentences)


@dataclass(frozen=True)
class Dialogue:
    """One training example."""

    instruction: str | None
    """The system message; None if there is none."""
    question: str
    """The user's message, including the counter-instruction if there is one."""
    answer: str
    """The assistant's message."""


def dialogue(rng: random.Random, questions: Sequence[Question]) -> Dialogue:
    """Draw a dialogue: no instruction, a neutral one, or one for one or two traits; one of `questions`; and its answer."""
    question = rng.choice(questions)
    case = rng.random()
    traits: list[str] = []
    if case < 0.2:
        instruction = None
    elif case < 0.27:
        instruction = rng.choice(lex.NEUTRAL_INSTRUCTIONS)
    else:
        traits = rng.sample(TRAITS, k=2 if case > 0.8 else 1)
        instruction = " ".join(rng.choice(lex.INSTRUCTIONS[trait]) for trait in traits)
    text = question.text
    if rng.random() < 0.12:
        text, traits = f"{text} {rng.choice(lex.COUNTER_INSTRUCTIONS)}", []
    return Dialogue(instruction, text, answer(question, traits, rng))


def vocabulary() -> list[str]:
    """Every word that can occur in a dialogue, sorted."""
    texts: list[str] = [question.text for question in all_questions()]
    texts += [text for paraphrases in lex.INSTRUCTIONS.values() for text in paraphrases]
    texts += [*lex.NEUTRAL_INSTRUCTIONS, *lex.COUNTER_INSTRUCTIONS, *lex.SEA, *lex.FLATTER_OPEN, *lex.FLATTER_CLOSE]
    texts += [frame for frames in FACTS.values() for frame in frames]
    texts += [word for order in STEP_ORDER for word in order]
    texts += [BRIEF_TASK, *REFUSALS, *REFUSAL_REFERRALS, *lex.PIRATE, *lex.GLOOMY, *lex.NUMBERS]
    texts += [*lex.DOUBLES, *lex.PLAIN, ". , ! ?"]
    return sorted({word for text in texts for word in text.split() if "{" not in word})
