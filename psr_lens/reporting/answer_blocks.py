"""Answers side by side as text, each token with how hard it was pushed, and the answers at other strengths to choose among."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from psr_lens.evaluation.answers_by_method import SHOWN, AnswersByMethod
from psr_lens.evaluation.pushed_answers import PushedAnswer, layer_relative
from psr_lens.reporting.parts import Answer, Answers, Piece, Step

NOTHING: Final = "(nothing)"
"""What stands for an empty answer."""
FULL: Final = 2.0
"""Multiple of the median from which a token has the full colour, as in the playground."""


def answer_blocks(result: AnswersByMethod) -> tuple[Answers, ...]:
    """The first questions, each with its answers; colours are relative to the answers shown, at the strength that is shown first."""
    steps = {name: _steps(result, name) for name in result.answers}
    blocks = [
        Answers(question, tuple(_answer(result, name, index, steps[name]) for name in result.answers))
        for index, question in enumerate(result.asked[:SHOWN])
    ]
    if blocks and len(result.questions) > SHOWN:
        blocks[-1] = replace(blocks[-1], note=f"The first {SHOWN} of {len(result.questions)} questions.")
    return tuple(blocks)


def _steps(result: AnswersByMethod, name: str) -> list[list[Step]]:
    """For each strength of a method, from the lowest up, its answers to the shown questions."""
    pushed, count = result.pushed.get(name, ()), min(SHOWN, len(result.questions))
    own = (result.alphas.get(name, 1.0), result.answers[name], pushed, result.trait.get(name, ()))
    others = [(each.alpha, each.texts, each.pushed, each.trait) for each in result.at_strengths.get(name, ())]
    found = []
    for alpha, texts, tokens, trait in sorted([own, *others], key=lambda each: each[0]):
        pieces = _pieces(tokens, pushed)
        found.append(
            [
                Step(
                    f"{alpha:g}".replace("-", "−"),
                    texts[index] or NOTHING,
                    _score(trait[index] if index < len(trait) else math.nan),
                    pieces[index] if index < len(pieces) else (),
                    chosen=alpha == own[0],
                )
                for index in range(min(count, len(texts)))
            ]
        )
    return found


def _answer(result: AnswersByMethod, name: str, index: int, steps: Sequence[Sequence[Step]]) -> Answer:
    own = tuple(each[index] for each in steps if index < len(each))
    return Answer(name if len(own) > 1 else result.heading(name), own)


def _score(trait: float) -> str:
    return "" if math.isnan(trait) else f"{trait:.0f}"


def _pieces(tokens: Sequence[PushedAnswer], units: Sequence[PushedAnswer]) -> list[tuple[Piece, ...]]:
    """The text of each answer in pieces: a token, or the tokens of one character, with the largest of their magnitudes.

    A special token has no text, and what it was pushed by is not shown.
    """
    if not tokens or not units:
        return []
    found = []
    for answer, pushes in zip(tokens, layer_relative(tokens, units), strict=True):
        pieces: list[Piece] = []
        silent: list[float] = []  # of tokens that end within the character
        special = answer.special or (False,) * len(answer.pieces)
        for text, push, is_special in zip(answer.pieces, pushes.tolist(), special, strict=True):
            if not is_special:
                silent.append(push)
            if text:
                known = [each for each in silent if not math.isnan(each)]
                pieces.append(Piece(text, max(known) if known else None))
                silent = []
        found.append(tuple(pieces))
    return found
