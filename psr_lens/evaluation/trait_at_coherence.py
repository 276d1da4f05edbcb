"""The strength at which coherence is at a target, and the trait there: TA@C80 and TA@Cp (Heyman & Vandeputte 2026).

A curve is the mean coherence and trait at a few strengths. Coherence falls as the strength grows, but not monotonically: it is noisy,
and a token-wise method may be less coherent at half its strength than at full strength. So the strength at a target is defined as the
*last* one at which coherence, interpolated linearly between neighbouring strengths, falls through the target. The trait is interpolated
between the same two strengths. If there is no such strength, the outcome says why:

- `above`: coherence is at or above the target even at the largest strength. The highest trait among the strengths that reach the target is
  taken.
- `below`: no strength reaches the target, not even 0. The most coherent strength is taken.
- `unmeasured`: coherence was measured at no strength.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from psr_lens._utils.numbers import counted

Outcome = Literal["reached", "above", "below", "unmeasured"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("reached", "above", "below", "unmeasured")


class AtTarget(NamedTuple):
    """Trait and strength of curves at a target coherence."""

    trait: Float[np.ndarray, " curve"]
    """Trait, 0–100; NaN if unmeasured."""
    alpha: Float[np.ndarray, " curve"]
    """Strength; NaN if unmeasured."""
    outcome: Int[np.ndarray, " curve"]
    """Index into `OUTCOMES`."""

    def __repr__(self) -> str:
        """How many curves have which outcome, on one line."""
        counts = [(int((self.outcome == index).sum()), name) for index, name in enumerate(OUTCOMES)]
        return f"AtTarget({counted(len(self.outcome), 'curve')}: {', '.join(f'{count} {name}' for count, name in counts if count)})"


def at_target(
    alphas: Float[np.ndarray, " alpha"],
    trait: Float[np.ndarray, "curve alpha"],
    coherence: Float[np.ndarray, "curve alpha"],
    target: float | Float[np.ndarray, " curve"],
) -> AtTarget:
    """Strength and trait of curves, one for each resample of the questions, at a target coherence; the module docstring has the rule.

    Args:
        alphas: Strengths in ascending order.
        trait: Mean trait at each strength.
        coherence: Mean coherence at each strength; NaN counts as not reaching the target.
        target: The target coherence, one for all curves or one for each.
    """
    wanted = np.broadcast_to(np.asarray(target, dtype=float), len(coherence))
    reached = coherence >= wanted[:, None]
    last = reached.shape[1] - 1 - np.argmax(reached[:, ::-1], axis=1)
    following = np.minimum(last + 1, len(alphas) - 1)
    outcome = np.where(~reached.any(1), 2, np.where(last == len(alphas) - 1, 1, 0))
    outcome = np.where(np.isnan(coherence).all(1), 3, outcome)
    high, low = _take(coherence, last), _take(coherence, following)
    falls = (outcome == 0) & ~np.isnan(low)  # coherence is missing at the next strength: stay at the last one
    share = np.divide(high - wanted, high - low, out=np.zeros(len(wanted)), where=falls)
    best = np.argmax(np.where(reached, np.nan_to_num(trait, nan=-np.inf), -np.inf), axis=1)
    calmest = np.argmax(np.nan_to_num(coherence, nan=-np.inf), axis=1)

    def read(values: Float[np.ndarray, "curve alpha"]) -> Float[np.ndarray, " curve"]:
        between = (1 - share) * _take(values, last) + np.where(share > 0, share * _take(values, following), 0.0)
        return np.choose(outcome, [between, _take(values, best), _take(values, calmest), np.full(len(wanted), np.nan)])

    return AtTarget(read(trait), read(np.broadcast_to(alphas, coherence.shape)), outcome)


def _take(values: Float[np.ndarray, "curve alpha"], index: Int[np.ndarray, " curve"]) -> Float[np.ndarray, " curve"]:
    found: Float[np.ndarray, " curve"] = np.take_along_axis(values, index[:, None], axis=1)[:, 0]
    return found


def search(
    measure: Callable[[Sequence[float]], object],
    known: Mapping[float, float],
    targets: Collection[float],
    *,
    maximum: float,
    steps: int,
    tolerance: float,
) -> None:
    """Search for the last strength at which coherence falls through each target, by bisection.

    For each target, the strength is doubled from 1 until coherence is below the target, or up to a maximum; then the interval in which
    coherence falls through the target is halved. Coherences that are already known bound the search as if they had just been measured. All
    targets take one step at a time, so that their strengths can be measured together.

    Args:
        measure: Measures coherence at one or more strengths, and adds it to `known`.
        known: Coherence by strength; holds strength 0.
        targets: The coherences to find.
        maximum: Largest strength to try.
        steps: Most halvings for each target.
        tolerance: Halving ends at a coherence this close to the target.
    """
    left = dict.fromkeys(targets, steps)
    while True:
        wanted = set()
        for target, halvings in left.items():
            low, high = _around(known, target)
            if high is None:
                if low < maximum:
                    wanted.add(min(maximum, max(1.0, 2 * low)))
            elif halvings and known[low] >= target and min(abs(known[alpha] - target) for alpha in (low, high)) > tolerance:
                wanted.add((low + high) / 2)
                left[target] -= 1
        if not wanted:
            return
        measure(sorted(wanted))


def _around(known: Mapping[float, float], target: float) -> tuple[float, float | None]:
    """The largest known strength that reaches the target, 0 if none does, and the next larger known one."""
    low = max((alpha for alpha, coherence in known.items() if coherence >= target), default=0.0)
    return low, min((alpha for alpha in known if alpha > low), default=None)
