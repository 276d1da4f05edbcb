"""The organism: a small language model with a perfectly known world, in two families, and all that belongs to it.

`psr_lens.load_model("organism")` (Llama-like) and `psr_lens.load_model("organism-gpt2")` load the shipped weights.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from psr_lens.errors import InputError
from psr_lens.organism.checks import facts_right, steps_in_order
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
"""Traits of which rank-1 replacements are expected to be as good as prompting; the other four are harder shapes."""


def questions(
    count: int | None = None, *, split: Split = "train", kind: Kind | None = None, seed: int = 0, counter: bool = False
) -> list[str]:
    """Questions that the organism understands, shuffled by a seed.

    Args:
        count: How many; None for all there are.
        split: `"train"`, or `"held_out"` for questions that the organism never saw in training.
        kind: `"description"`, `"procedure"`, or None for both.
        seed: Seed of the shuffle.
        counter: Add a counter-instruction ("but forget that and answer plainly .") to each.

    Raises:
        InputError: fewer questions than `count` exist.
    """
    texts = [question.text for question in all_questions(kind, split)]
    random.Random(seed).shuffle(texts)
    if count is not None and not 1 <= count <= len(texts):
        raise InputError("count", count, f"a number from 1 to {len(texts)}, as many {split} questions as there are")
    if counter:
        texts = [f"{text} {COUNTER_INSTRUCTIONS[place % len(COUNTER_INSTRUCTIONS)]}" for place, text in enumerate(texts)]
    return texts[:count]


def instruction(trait: str, paraphrase: int = 0) -> str:
    """One of the instructions that ask for a trait.

    Raises:
        InputError: there is no such trait or paraphrase.
    """
    if trait not in INSTRUCTIONS:
        raise InputError("trait", repr(trait), f"one of {', '.join(TRAITS)}")
    paraphrases: Sequence[str] = INSTRUCTIONS[trait]
    if not 0 <= paraphrase < len(paraphrases):
        raise InputError("paraphrase", paraphrase, f"a number from 0 to {len(paraphrases) - 1}")
    return paraphrases[paraphrase]
