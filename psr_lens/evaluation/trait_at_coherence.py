"""The strength at which coherence is at a target, and the trait there: TA@C80 and TA@Cp (Heyman & Vandeputte 2026).

A curve is a few strengths with the mean coherence and trait at each. Coherence falls as the strength grows, but not everywhere: it is
noisy, and a token-wise method at half its strength may be less coherent than at its whole. So the strength at a target is defined as the
*last* place where coherence, taken as straight between neighbouring strengths, falls through the target; the trait there is
taken as straight between the same two strengths. Where there is no such place, the outcome says so:

- `above`: coherence is still at the target at the largest strength. The highest trait among the strengths at the target is taken.
- `below`: no strength reaches it, not even 0. The most coherent strength is taken.
- `unmeasured`: no strength has a coherence at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Outcome = Literal["reached", "above", "below", "unmeasured"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("reached", "above", "below", "unmeasured")


class AtTarget(NamedTuple):
    """What was read off curves at a target coherence."""

    trait: Float[np.ndarray, " curve"]
    """Trait there; NaN where it is unmeasured."""
    alpha: Float[np.ndarray, " curve"]
    """The strength; NaN where it is unmeasured."""
    outcome: Int[np.ndarray, " curve"]
    """Index into `OUTCOMES`."""


def at_target(
    alphas: Float[np.ndarray, " alpha"],
    trait: Float[np.ndarray, "curve alpha"],
    coherence: Float[np.ndarray, "curve alpha"],
    target: float | Float[np.ndarray, " curve"],
) -> AtTarget:
    """Read strength and trait off curves, one a resample of the questions, at a target coherence; see above for what is taken.

    Args:
        alphas: Strengths, ascending.
        trait: Mean trait at each.
        coherence: Mean coherence at each; NaN counts as not at the target.
        target: The coherence, one number or one a curve.
    """
    wanted = np.broadcast_to(np.asarray(target, dtype=float), len(coherence))
    reached = coherence >= wanted[:, None]
    last = reached.shape[1] - 1 - np.argmax(reached[:, ::-1], axis=1)
    following = np.minimum(last + 1, len(alphas) - 1)
    outcome = np.where(~reached.any(1), 2, np.where(last == len(alphas) - 1, 1, 0))
    outcome = np.where(np.isnan(coherence).all(1), 3, outcome)
    high, low = _take(coherence, last), _take(coherence, following)
    falls = (outcome == 0) & ~np.isnan(low)  # without a coherence at the next strength: stay at the last one
    share = np.divide(high - wanted, high - low, out=np.zeros(len(wanted)), where=falls)
    best = np.argmax(np.where(reached, np.nan_to_num(trait, nan=-np.inf), -np.inf), axis=1)
    calmest = np.argmax(np.nan_to_num(coherence, nan=-np.inf), axis=1)

    def read(values: Float[np.ndarray, "curve alpha"]) -> Float[np.ndarray, " curve"]:
        between = (1 - share) * _take(values, last) + np.where(share > 0, share * _take(values, following), 0.0)
        return np.choose(outcome, [between, _take(values, best), _take(values, calmest), np.full(len(wanted), np.nan)])

    return AtTarget(read(trait), read(np.broadcast_to(alphas, coherence.shape)), outcome)


def _take(values: Float[np.ndarray, "curve alpha"], place: Int[np.ndarray, " curve"]) -> Float[np.ndarray, " curve"]:
    found: Float[np.ndarray, " curve"] = np.take_along_axis(values, place[:, None], axis=1)[:, 0]
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
    """Measure at the strengths that the last places where coherence falls through some targets need.

    For each target, from 1 on the strength is doubled until coherence is below it, or up to a maximum; then the interval in which it falls
    is halved. What is known already is used, and bounds the search from above or below as if it had just been measured. All targets
    take a step at a time, so that their strengths can be measured together.

    Args:
        measure: Measures the coherence at one or more strengths, and adds it to `known`.
        known: Coherence by strength; 0 is among them.
        targets: The coherences that are looked for.
        maximum: Largest strength that is tried.
        steps: Most halvings a target.
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
    """The largest strength that reaches the target, 0 if none does, and the next larger one that is known."""
    low = max((alpha for alpha, coherence in known.items() if coherence >= target), default=0.0)
    return low, min((alpha for alpha in known if alpha > low), default=None)
