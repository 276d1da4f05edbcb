"""A judge model's reply, and its score."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from psr_lens.judges.clean_text import sendable
from psr_lens.judges.llm_judge.number_in_reply import Number, read_number

MIN_MASS: Final = 0.25
"""Least total probability of numbers for a weighted score (persona_vectors, `OpenAiJudge`)."""

_INTEGER: Final = re.compile(r"0|[1-9][0-9]?|100")
_FILTERED: Final = "content_filter"


class MalformedReplyError(ValueError):
    """A server's answer does not follow the protocol."""


@dataclass(frozen=True)
class Reply:
    """One reply, reduced to what its score depends on."""

    text: str
    """Text of the reply."""
    finish: str = "stop"
    """Why it ended: `length` (cut off), `content_filter` (refused), else `stop`."""
    numbers: tuple[tuple[int, float], ...] | None = None
    """Whole numbers 0–100 among the most likely tokens at the score's position, with their probabilities; None without logprobs."""
    whole: bool = False
    """Whether the sampled token there is the complete number; it is not where each digit is a token of its own."""

    @classmethod
    def from_completion(cls, body: Any) -> Reply:
        """Read a chat completion.

        Raises:
            MalformedReplyError: it is not a chat completion.
        """
        choices = body.get("choices") if isinstance(body, Mapping) else None
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise MalformedReplyError("the answer has no choices")
        message = choices[0].get("message")
        if not isinstance(message, Mapping):
            raise MalformedReplyError("the answer has no message")
        finish = choices[0].get("finish_reason")
        finish = finish if finish in ("length", _FILTERED) else "stop"
        if message.get("refusal"):
            finish = _FILTERED
        text = sendable(_text_of(message.get("content")))
        logprobs = choices[0].get("logprobs")
        tokens = logprobs.get("content") if isinstance(logprobs, Mapping) else None
        if not isinstance(tokens, list) or not all(isinstance(token, Mapping) for token in tokens) or not tokens:
            return cls(text, finish)
        numbers, whole = _at_the_score(text, tokens)
        return cls(text, finish, numbers=numbers, whole=whole)

    @classmethod
    def filtered(cls) -> Reply:
        """The reply of a server that refuses a prompt for its content."""
        return cls("", _FILTERED)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Reply:
        """Read what `to_json` returned.

        Raises:
            KeyError, TypeError, ValueError: the content is not such a reply.
        """
        text, finish, numbers, whole = (found[name] for name in ("text", "finish", "numbers", "whole"))
        if not isinstance(text, str) or not isinstance(finish, str) or not isinstance(whole, bool):
            raise TypeError("a field has the wrong type")
        if numbers is not None:
            numbers = tuple((int(value), float(probability)) for value, probability in numbers)
            if not all(0 <= value <= 100 and 0 <= probability <= 1 for value, probability in numbers):
                raise ValueError("a number is out of range")
        return cls(text, finish, numbers=numbers, whole=whole)

    def to_json(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        return asdict(self)

    def score(self) -> tuple[float, str]:
        """The score, 0–100, and how it was obtained; NaN and the reason if it is missing.

        With logprobs, the mean of the whole numbers 0–100 among the most likely tokens at the score's position, weighted by their
        probabilities; missing if their total probability is less than `MIN_MASS` (persona_vectors). If the model writes numbers digit
        by digit, the first token is not a score, and the number is read from the text, as it is without logprobs.
        """
        if self.finish == _FILTERED:
            return math.nan, "missing: the server refused the prompt for its content"
        number = read_number(self.text)
        has_score = not math.isnan(number.score)
        weighable = self.whole if has_score else not number.digits
        if self.numbers and weighable and any(value >= 10 for value, _ in self.numbers):
            return self._weighted(number)
        if self.finish == "length" and (not number.digits or number.end == len(self.text.rstrip())):
            return math.nan, "missing: the reply was cut off; raise max_tokens"
        return number.score, number.reason

    def _weighted(self, number: Number) -> tuple[float, str]:
        mass = sum(probability for _, probability in self.numbers or ())
        if mass < MIN_MASS:
            why = f"missing: numbers have a total probability of only {mass:.2f}"
            return math.nan, why if number.digits else f"{number.reason}; {why.removeprefix('missing: ')}"
        score = sum(value * probability for value, probability in self.numbers or ()) / mass
        return min(max(score, 0.0), 100.0), f"weighted by the probabilities of numbers, {mass:.2f} in total"


def _text_of(content: Any) -> str:
    if isinstance(content, list):  # some servers return the text in parts
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _at_the_score(text: str, tokens: Sequence[Mapping[str, Any]]) -> tuple[tuple[tuple[int, float], ...], bool]:
    """The numbers among the most likely tokens where the score begins (at the first token without a score), and whether it is one token."""
    written = [str(token.get("token", "")) for token in tokens]
    wanted, found = read_number(text), read_number("".join(written))
    index, whole = 0, False
    if wanted.digits and wanted.digits == found.digits:
        end = 0
        for index, token in enumerate(written):  # noqa: B007
            end += len(token)
            if end > found.start:
                break
        whole = sendable(written[index]).strip("*_`\"' \t\r\n") == found.digits
    likeliest = tokens[index].get("top_logprobs")
    sums: dict[int, float] = {}
    for each in likeliest if isinstance(likeliest, list) else ():
        if isinstance(each, Mapping) and (found_number := _number_and_probability(each)):
            sums[found_number[0]] = sums.get(found_number[0], 0.0) + found_number[1]
    return tuple((value, min(probability, 1.0)) for value, probability in sorted(sums.items())), whole


def _number_and_probability(token: Mapping[str, Any]) -> tuple[int, float] | None:
    text, logprob = token.get("token"), token.get("logprob")
    if not isinstance(text, str) or not _INTEGER.fullmatch(text.strip()):
        return None
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or not logprob <= 0.01:  # NaN is refused too
        return None
    return int(text), math.exp(max(min(logprob, 0.0), -1e6))  # an int may be too large for a float
