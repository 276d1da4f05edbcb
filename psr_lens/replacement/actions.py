"""What replacements do at each hook point, at one strength: the arguments of `steer` and `attach`, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.safe_files import brief
from psr_lens.errors import InputError
from psr_lens.prompts import Span
from psr_lens.replacement.site import Site
from psr_lens.replacement.spec import ReplacementSpec, finite_number

Position = int | Int[Tensor, " batch"]
"""A position counted from the left with padding, one for all sequences or one per sequence."""

SPANS: Final[tuple[Span, ...]] = get_args(Span)
"""All spans."""

Start = Position | Mapping[Span, Position]
"""Where steering starts in a prompt: one position, or one per span."""


@dataclass(frozen=True, eq=False)
class Action:
    """One site at work, at one strength, on one part of the sequences."""

    site: Site
    """What is added."""
    strength: float | Float[Tensor, " batch"]
    """The factor `α + b_m` of λ·z; one number, or one per sequence."""
    span: Span
    """Where it acts if `start` is None."""
    start: Position | None
    """First steered position; None for the beginning of the span, which the call itself must show."""
    question_start: int | None
    """Position of the question's first token in an unpadded prompt, for the span `QR`."""
    last_only: bool
    """Whether only the position `start` is steered, and no decode step."""

    @property
    def is_idle(self) -> bool:
        """Whether it adds nothing anywhere."""
        return not isinstance(self.strength, Tensor) and self.strength == 0

    def select(self, rows: Int[Tensor, " row"]) -> Action:
        """The same action for some sequences of the batch."""
        return replace(self, strength=_selected(self.strength, rows), start=_selected(self.start, rows))


def _selected(given: Any, rows: Int[Tensor, " row"]) -> Any:
    """The values of some sequences, if there is one per sequence; else what is given."""
    return given[rows] if isinstance(given, Tensor) and given.numel() > 1 else given


def actions_of(
    parts: Sequence[tuple[ReplacementSpec, float]], alpha: float | Float[Tensor, " batch"], start: Start | None
) -> dict[str, list[Action]]:
    """What replacements do at each hook point.

    Args:
        parts: Replacements, each with the factor of its strength.
        alpha: Strength; each replacement's strength is this times its factor, plus its offset.
        start: First steered position, as for `Replacement.steer`.

    Raises:
        InputError: `alpha` is not a finite number or tensor; or `start` is invalid, needed and missing, or one position for several spans.
    """
    alpha = checked_alpha(alpha)
    if isinstance(start, Mapping) and (unknown := sorted(set(map(str, start)) - set(SPANS))):
        raise InputError("start", f"the unknown span {', '.join(map(repr, unknown))}", "a mapping with the keys 'R' and 'QR'")
    if start is not None and not isinstance(start, Mapping) and len({replacement.span for replacement, _ in parts}) > 1:
        raise InputError("start", start, "a mapping with a position for each span of the parts, {'R': …, 'QR': …}")
    actions: dict[str, list[Action]] = {}
    for replacement, factor in parts:
        first, strength = _start_of(replacement, start), alpha * factor + replacement.offset
        for name, site in replacement.sites.items():
            acts = Action(site, strength, replacement.span, first, replacement.question_start, replacement.tokens == "last")
            actions.setdefault(name, []).append(acts)
    return actions


def checked_alpha(alpha: Any) -> float | Float[Tensor, " batch"]:
    """A strength as it is used: a float, or a tensor with one number per sequence.

    Raises:
        InputError: it is neither, or not finite.
    """
    number = finite_number(alpha)
    if number is not None:
        return number
    numeric = isinstance(alpha, Tensor) and alpha.dtype != torch.bool and not alpha.is_complex()
    if not numeric or alpha.ndim > 1 or alpha.numel() == 0 or not bool(alpha.isfinite().all()):
        raise InputError("alpha", _on_one_line(alpha), "a finite number, or a tensor with one per sequence")
    numbers: Tensor = alpha.reshape(-1)
    return numbers


def checked_start(start: Any) -> Position:
    """A start as it is used: an int if it is the same for all sequences, else a tensor on the CPU.

    Raises:
        InputError: it is not an integer or a tensor of integers, or a position is negative.
    """
    expected = "a position counted from the left, 0 or more, or a tensor with one per sequence"
    try:
        positions = torch.as_tensor(start).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("start", _on_one_line(start), expected) from error
    integers = not positions.is_floating_point() and not positions.is_complex() and positions.dtype != torch.bool
    if not integers or positions.ndim > 1 or positions.numel() == 0 or bool((positions < 0).any()):
        raise InputError("start", _on_one_line(start), expected)
    return positions if positions.ndim else int(positions)


def _on_one_line(value: object) -> str:
    return " ".join(brief(value).split())


def _start_of(replacement: ReplacementSpec, given: Start | None) -> Position | None:
    start = given.get(replacement.span) if isinstance(given, Mapping) else given
    if start is None and replacement.span == "QR" and replacement.question_start is None:
        raise InputError("start", given, "the position of the question's first token", "It differed between the training prompts.")
    return None if start is None else checked_start(start)
