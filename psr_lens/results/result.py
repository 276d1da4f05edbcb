"""One measured number, and how it is read from JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from psr_lens._utils.safe_files import brief
from psr_lens.results.bootstrap import Interval


@dataclass(frozen=True)
class Result:
    """One number: what one method reached, in one metric, on one trait and one block of questions.

    Example:
        >>> psr.Result("A-PSR", "TA@C80", 96.8, n=100, interval=(95.1, 98.0), trait="pirate", alpha=1.2).metric
        'TA@C80'
    """

    method: str
    """`"none"`, `"prompt"`, `"A-PSR"`, `"S-Const DiM"`, `"A-PSR + prompt"`, …"""
    metric: str
    """`"trait"`, `"coherence"`, `"TA@C80"`, `"TA@Cp"`, `"relative RMSE"`, `"KL"`, `"top-1 agreement"`, …"""
    value: float
    """The number; NaN where it could not be measured."""
    n: int
    """Samples (questions, responses or texts) behind it."""
    interval: Interval
    """95 % bootstrap interval; (NaN, NaN) where it is unknown."""
    trait: str = ""
    """Trait, concept or instruction id."""
    block: str = ""
    """Kind of questions: `"descriptions"`, `"procedures"`, `"counter-instruction"`, …"""
    alpha: float | None = None
    """Strength of the steering; None without."""
    layer: int | None = None
    """Layer that was measured or steered; None where it is not a single one."""
    missing: int = 0
    """Samples that could not be scored; they never count as 0."""


FIELDS: Final = tuple(each.name for each in fields(Result))
"""Names of the fields of a result."""
LABELS: Final = ("method", "metric", "trait", "block", "alpha", "layer")
"""The fields that tell results apart."""
_KINDS: Final = {
    **dict.fromkeys(("method", "metric", "trait", "block"), str),
    **dict.fromkeys(("n", "missing"), int),
    "layer": int | None,
}
"""Types of the fields that are not floating-point numbers."""


def flat(row: Result) -> dict[str, Any]:
    """The fields of a result, its interval as `low` and `high`."""
    values = {name: getattr(row, name) for name in FIELDS}
    return {
        part: value
        for name, both in values.items()
        for part, value in ((("low", both[0]), ("high", both[1])) if name == "interval" else ((name, both),))
    }


def result_from_json(content: Mapping[str, Any]) -> Result:
    """A result from the mapping that JSON holds; null is NaN.

    Raises:
        KeyError, TypeError, ValueError: the mapping does not describe a result.
    """
    known = {name: content[name] for name in FIELDS if name in content}
    low, high = known["interval"]
    known |= {"value": _number(known["value"]), "interval": (_number(low), _number(high))}
    if known.get("alpha") is not None:
        known["alpha"] = _number(known["alpha"])
    for name, kind in _KINDS.items():
        value = known.get(name)
        if name in known and (isinstance(value, bool) or not isinstance(value, kind)):
            raise TypeError(f"{name} is {brief(value)}")
    return Result(**known)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not (value is None or value in ("inf", "-inf") or isinstance(value, int | float)):
        raise TypeError(f"{brief(value)} is not a number")
    try:
        return math.nan if value is None else float(value)
    except OverflowError as error:
        raise ValueError(f"{brief(value)} is too large") from error
