"""What a browser asks for, checked: it is JSON from outside, whatever its type says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psr_lens._utils.numbers import is_real, is_whole
from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.generation.sampling import SamplingConfig

LONGEST: Final = 20_000
"""Most characters of a question or an instruction."""
MOST_TOKENS: Final = 2_048
"""Most tokens of an answer."""
WEAKEST: Final = -1.0
"""Where the sliders begin."""
STRONGEST: Final = 3.0
"""Where the sliders end."""
HOTTEST: Final = 100.0
"""Highest temperature."""


@dataclass(frozen=True)
class Request:
    """Answers that are asked for."""

    question: str
    """The question."""
    instruction: str
    """The instruction of the prompt."""
    columns: tuple[str, ...]
    """Which columns to answer in."""
    alphas: Mapping[str, float]
    """Strength of each method."""
    sampling: SamplingConfig
    """How answers are sampled."""

    @classmethod
    def of(cls, asked: Mapping[str, Any], methods: Sequence[str], columns: Sequence[str], sampling: SamplingConfig) -> Request:
        """Read a request.

        Args:
            asked: What the browser sent.
            methods: Names of the methods.
            columns: Names of all columns.
            sampling: The settings that the browser does not choose.

        Raises:
            InputError: something is missing, of another type or out of range.
        """
        alphas = asked.get("alphas")
        if not isinstance(alphas, Mapping) or set(alphas) != set(methods):
            raise InputError("alphas", _short(alphas), "one strength for each method")
        for name, alpha in alphas.items():
            if not is_real(alpha) or not WEAKEST <= alpha <= STRONGEST:  # NaN and what overflows a float included
                raise InputError(f"alphas[{name!r}]", _short(alpha), f"a number from {WEAKEST:g} to {STRONGEST:g}")
        chosen = asked.get("columns", list(columns))
        if not isinstance(chosen, list) or not chosen or any(name not in columns for name in chosen):
            raise InputError("columns", _short(chosen), f"some of {', '.join(map(repr, columns))}")
        count = asked.get("max_new_tokens")
        if count is None or not is_whole(count) or not 1 <= count <= MOST_TOKENS:
            raise InputError("max_new_tokens", _short(count), f"a whole number from 1 to {MOST_TOKENS}")
        temperature = asked.get("temperature")
        if temperature is None or not is_real(temperature) or not 0 <= temperature <= HOTTEST:
            raise InputError("temperature", _short(temperature), f"a number from 0 to {HOTTEST:g}")
        return cls(
            _text(asked, "question"),
            _text(asked, "instruction"),
            tuple(dict.fromkeys(chosen)),
            {name: float(alphas[name]) for name in methods},
            SamplingConfig(
                **{
                    **vars(sampling),
                    "seed": _seed(asked.get("seed")),
                    "temperature": float(temperature),
                    "max_new_tokens": count,
                }
            ),
        )


def _text(asked: Mapping[str, Any], name: str) -> str:
    text = asked.get(name)
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
        raise InputError(name, _short(text), f"a text of at most {LONGEST:,} characters with at least one word")
    return text


def _seed(given: Any) -> int:
    """A seed; browsers send it as text, since their numbers are exact to 2^53 only."""
    if isinstance(given, str) and re.fullmatch("[0-9]{1,40}", given):
        return int(given)
    if not is_whole(given) or not 0 <= given < 10**40:
        raise InputError("seed", _short(given), "a whole number, 0 or more, of at most 40 digits")
    return int(given)


def _short(value: object) -> str:
    return shortened(repr(value), 60)
