"""What a request asks for: which replacements steer it, how strongly, and from which token on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from psr_lens._utils.digests import digest_of
from psr_lens._utils.numbers import is_whole
from psr_lens._utils.safe_files import brief
from psr_lens.errors import InputError
from psr_lens.prompts import Span
from psr_lens.replacement import SPANS, ReplacementSpec
from psr_lens.replacement.spec import finite_number
from psr_lens.serving.served import Served

NAMES: Final = "psr"
"""A name, the digest of a replacement, or a list of them, whose effects are added up."""
ALPHA: Final = "psr_alpha"
"""The strength; one number, or one for each name; 1 if it is not given."""
STARTS: Final = {f"psr_start_{span}": span for span in SPANS}
"""The first steered position of the prompt, for replacements of one span."""
SERVES_NONE: Final = "no replacement, since this engine serves none"
"""What is expected of a request where there is nothing to steer it."""
_START_R: Final = next(key for key, span in STARTS.items() if span == "R")
IN_FORCE: Final = "psr_in_force"
"""What was made of the request, for the other processes of the engine; no request may hold it."""
_KEYS: Final = (NAMES, ALPHA, *STARTS)
_LARGEST: Final = 1e30
"""Largest strength; more overflows in single precision."""


class InForce(NamedTuple):
    """One replacement at work in one request."""

    digest: str
    """Digest of what the replacement does."""
    strength: float
    """The factor of λ·z."""
    start: int
    """The first steered position."""
    last_only: bool
    """Whether only that position is steered."""


def asks_to_be_steered(arguments: Any) -> bool:
    """Whether a request has an argument that is meant for this plugin, known or misspelt: any that begins with `psr`."""
    return isinstance(arguments, Mapping) and any(map(is_ours, arguments))


def is_ours(key: Any) -> bool:
    """Whether an argument is meant for this plugin."""
    return isinstance(key, str) and key.lower().startswith(NAMES)


def in_force(
    served: Served | None, arguments: Mapping[Any, Any] | None, prompt_length: int | None, *, scores_prompt: bool = False
) -> list[InForce]:
    """What steers a request.

    Args:
        served: The replacements of the engine.
        arguments: The request's `extra_args`, in HTTP `vllm_xargs`.
        prompt_length: Number of tokens in its prompt; None if it is not known yet, for a check of all else.
        scores_prompt: Whether the probabilities of the prompt's own tokens are asked for. Part of such a prompt is mostly a response, so
            where that begins must be said: by default, nothing before the prompt's last token is steered.

    Returns:
        Every replacement at a strength other than 0, once. Without a length, their starts mean nothing.

    Raises:
        InputError: the arguments are invalid, or name a replacement that is not served.
    """
    if not arguments or not asks_to_be_steered(arguments):
        return []
    _check_keys(arguments)
    if served is None:
        raise InputError(
            NAMES,
            brief(arguments[NAMES]),
            SERVES_NONE,
            "Start it with `additional_config={'psr': {'pirate': 'pirate-psr'}}`, names and folders.",
        )
    names = _names(arguments[NAMES])
    starts = {span: _start(key, arguments[key], prompt_length) for key, span in STARTS.items() if key in arguments}
    found: dict[str, InForce] = {}
    spans = set()
    for name, alpha in zip(names, _alphas(arguments.get(ALPHA, 1.0), len(names)), strict=True):
        for part in served.parts(name):
            replacement = served.replacements[part.digest]
            spans.add(replacement.span)
            strength = alpha * part.factor + replacement.offset
            earlier = found.get(part.digest)
            found[part.digest] = InForce(
                part.digest,
                strength if earlier is None else earlier.strength + strength,
                _first(replacement, name, starts, prompt_length),
                replacement.tokens == "last",
            )
    for key, span in STARTS.items():
        if key in arguments and span not in spans:
            raise InputError("extra_args", key, f"no {key}: none of {', '.join(map(repr, names))} acts on the span {span}")
    if scores_prompt and "R" in spans and "R" not in starts and any(each.strength for each in found.values()):
        raise InputError(
            _START_R,
            None,
            "the first steered position in a request for the log probabilities of its prompt",
            "If the prompt ends in a response, that is the position before the response.",
        )
    for each in found.values():
        if abs(each.strength) > _LARGEST:
            raise InputError(ALPHA, brief(arguments.get(ALPHA)), f"strengths of at most {_LARGEST:g}")
    return [each for each in found.values() if each.strength != 0]


def cache_key(steering: Sequence[Sequence[Any]], end: int) -> bytes | None:
    """What the activations of the tokens before `end` depend on besides the tokens; None if nothing has steered them."""
    acting = sorted(list(each) for each in steering if each[2] < end)
    return digest_of(acting).encode() if acting else None


def _check_keys(arguments: Mapping[Any, Any]) -> None:
    ours = [key for key in arguments if is_ours(key)]
    if unknown := sorted(set(ours) - set(_KEYS)):
        raise InputError("extra_args", f"the unknown name {brief(unknown[0])}", f"some of {', '.join(map(repr, _KEYS))}")
    if NAMES not in arguments:
        raise InputError("extra_args", f"{ours[0]!r} without {NAMES!r}", f"the name of a replacement as {NAMES!r}")


def _names(given: Any) -> list[str]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not names or not all(isinstance(each, str) for each in names):
        raise InputError(NAMES, brief(given), "the name of a replacement, or a list of names")
    return list(names)


def _alphas(given: Any, count: int) -> list[float]:
    each = given if isinstance(given, list | tuple) else [given] * count
    numbers = [finite_number(alpha) for alpha in each]
    if len(numbers) != count or None in numbers:
        raise InputError(ALPHA, brief(given), f"a finite number, or a list with one for each of {count} names")
    return [number for number in numbers if number is not None]


def _start(key: str, given: Any, prompt_length: int | None) -> int:
    if not is_whole(given) or given < 0 or (prompt_length is not None and given >= prompt_length):
        prompt = "the prompt" if prompt_length is None else f"the prompt of {prompt_length} tokens"
        raise InputError(key, brief(given), f"a position in {prompt}, counted from 0")
    return int(given)


def _first(replacement: ReplacementSpec, name: str, starts: Mapping[Span, int], prompt_length: int | None) -> int:
    if replacement.span in starts:
        return starts[replacement.span]
    if replacement.span == "R":
        return 0 if prompt_length is None else prompt_length - 1
    if replacement.question_start is None:
        key = next(key for key, span in STARTS.items() if span == "QR")
        raise InputError(
            key, None, f"the position of the question's first token, from which {brief(name)} acts", "It differed in training."
        )
    if prompt_length is not None and replacement.question_start >= prompt_length:
        raise InputError(
            "prompt", f"{prompt_length} tokens", f"more than {replacement.question_start}, where the question began in training"
        )
    return replacement.question_start
