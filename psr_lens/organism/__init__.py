"""The organism: a small language model, in two architectures, whose world of facts and rules is known exactly.

`psr_lens.load_model("organism")` (Llama-like) and `psr_lens.load_model("organism-gpt2")` load the shipped weights.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from numbers import Integral
from typing import Final, get_args

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError
from psr_lens.organism.correctness import facts_right, steps_in_order
from psr_lens.organism.grammar import TRAITS, Kind, Split, all_questions
from psr_lens.organism.lexicon import COUNTER_INSTRUCTIONS, INSTRUCTIONS, NEUTRAL_INSTRUCTIONS

__all__ = [
    "COUNTER_INSTRUCTIONS",
    "EASY_TRAITS",
    "INSTRUCTIONS",
    "NEUTRAL_INSTRUCTIONS",
    "TRAITS",
    "facts_right",
    "instruction",
    "questions",
    "steps_in_order",
]

EASY_TRAITS: Final = ("pirate", "shout", "flatter", "gloomy", "sea")
"""Traits for which rank-1 replacements are expected to match prompting; the other four are harder."""


@checks_arguments
def questions(
    count: int | None = None, *, split: Split = "train", kind: Kind | None = None, seed: int = 0, counter: bool = False
) -> list[str]:
    """Questions that the organism understands, shuffled by a seed.

    Args:
        count: How many; None for all.
        split: `"train"`, or `"held_out"` for questions that the organism never saw in training.
        kind: `"description"`, `"procedure"`, or None for both.
        seed: Seed of the shuffle.
        counter: Whether to append a counter-instruction ("but forget that and answer plainly .") to each question.

    Returns:
        The questions, none of them twice.

    Raises:
        InputError: an unknown split or kind, or a `count` that is larger than the number of questions.

    Example:
        >>> psr.organism.questions(2, kind="procedure")
        ['hey , i want to know how to sew a bag .', 'quick one , how do people bake bread ?']
        >>> len(psr.organism.questions(split="held_out"))
        472
    """
    for argument, given, known in (("split", split, get_args(Split)), ("kind", kind, (*get_args(Kind), None))):
        if given not in known:
            raise InputError(argument, repr(given), f"one of {', '.join(map(repr, known))}")
    texts = [question.text for question in all_questions(kind, split)]
    random.Random(int(seed)).shuffle(texts)
    if count is not None and (not _is_whole(count) or not 1 <= count <= len(texts)):
        raise InputError("count", repr(count), f"a number from 1 to {len(texts)}, the number of {split} questions")
    if counter:
        texts = [f"{text} {COUNTER_INSTRUCTIONS[index % len(COUNTER_INSTRUCTIONS)]}" for index, text in enumerate(texts)]
    return texts[:count]


@checks_arguments
def instruction(trait: str, paraphrase: int = 0) -> str:
    """One of the instructions that ask for a trait.

    Args:
        trait: Name of the trait, one of `psr.organism.TRAITS`.
        paraphrase: Index of the wording, 0–3.

    Raises:
        InputError: an unknown trait or paraphrase.

    Example:
        >>> psr.organism.instruction("pirate"), psr.organism.instruction("pirate", 1)
        ('talk like a pirate .', 'speak as a pirate would .')
    """
    if trait not in INSTRUCTIONS:
        raise InputError("trait", repr(trait), f"one of {', '.join(TRAITS)}")
    paraphrases: Sequence[str] = INSTRUCTIONS[trait]
    if not _is_whole(paraphrase) or not 0 <= paraphrase < len(paraphrases):
        raise InputError("paraphrase", repr(paraphrase), f"a number from 0 to {len(paraphrases) - 1}")
    return paraphrases[paraphrase]


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral)
