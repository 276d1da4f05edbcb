"""What a browser asks for, checked: it is JSON from outside, whatever its type says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psr_lens._utils.numbers import is_real, is_whole
from psr_lens.errors import InputError
from psr_lens.generation.sampling import SamplingConfig

LONGEST: Final = 20_000
"""Most characters of a question or an instruction."""
MOST_TOKENS: Final = 2_048
"""Most tokens of an answer."""
STRONGEST: Final = 10.0
"""Largest size of a strength."""


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
            if not is_real(alpha) or not math.isfinite(alpha) or abs(alpha) > STRONGEST:
                raise InputError(f"alphas[{name!r}]", _short(alpha), f"a number from −{STRONGEST:g} to {STRONGEST:g}")
        chosen = asked.get("columns", list(columns))
        if not isinstance(chosen, list) or not chosen or any(name not in columns for name in chosen):
            raise InputError("columns", _short(chosen), f"some of {', '.join(map(repr, columns))}")
        count = asked.get("max_new_tokens")
        if count is None or not is_whole(count) or not 1 <= count <= MOST_TOKENS:
            raise InputError("max_new_tokens", _short(count), f"a whole number from 1 to {MOST_TOKENS}")
        return cls(
            _text(asked, "question"),
            _text(asked, "instruction"),
            tuple(dict.fromkeys(chosen)),
            {name: float(alphas[name]) for name in methods},
            SamplingConfig(
                **{
                    **vars(sampling),
                    "seed": asked.get("seed"),
                    "temperature": asked.get("temperature"),
                    "max_new_tokens": count,
                }
            ),
        )


def _text(asked: Mapping[str, Any], name: str) -> str:
    text = asked.get(name)
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
        raise InputError(name, _short(text), f"a text of at most {LONGEST:,} characters with at least one word")
    return text


def _short(value: object) -> str:
    found = repr(value)
    return found if len(found) <= 60 else f"{found[:59]}…"
