"""Means of results over traits, or over blocks of questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float

from psr_lens.results.bootstrap import NO_INTERVAL, Interval, percentile_interval, resampled_means
from psr_lens.results.result import Result


def means_over(rows: Sequence[Result], over: str) -> list[Result]:
    """One row for all rows that differ only in `over`, `"trait"` or `"block"`; see `ResultTable.mean_over`."""
    other = "block" if over == "trait" else "trait"
    groups = _grouped(rows, ("method", "metric", other))
    for name in ("layer", "alpha"):
        groups = [part for group in groups for part in (_grouped(group, (name,)) if _repeats(group, over) else [group])]
    return [_mean(group, over) for group in groups]


def _grouped(rows: Sequence[Result], names: Sequence[str]) -> list[list[Result]]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return list(groups.values())


def _repeats(rows: Sequence[Result], over: str) -> bool:
    """Whether one trait (or block) has several rows."""
    return len({getattr(row, over) for row in rows}) < len(rows)


def _mean(rows: Sequence[Result], over: str) -> Result:
    values = np.array([row.value for row in rows if not math.isnan(row.value)], dtype=float)
    of = f"{len(rows)}" if len(values) == len(rows) else f"{len(values)} of {len(rows)}"
    same = {
        name: next(iter(found)) if len(found := {getattr(row, name) for row in rows}) == 1 else None for name in ("alpha", "layer")
    }
    counts = {name: sum(getattr(row, name) for row in rows) for name in ("n", "missing")}
    value = float(values.mean()) if len(values) else math.nan
    changes: dict[str, Any] = {over: f"mean of {of}", **same, **counts}
    return replace(rows[0], value=value, interval=_interval(rows, values), **changes)


def _interval(rows: Sequence[Result], values: Float[np.ndarray, " value"]) -> Interval:
    if len(values) == 1:
        return next(row.interval for row in rows if not math.isnan(row.value))
    if not len(values):
        return NO_INTERVAL
    means = resampled_means(values, np.ones(len(values), dtype=bool))
    wider = values.mean() + (means - values.mean()) * math.sqrt(len(values) / (len(values) - 1))
    ends = np.array([[row.value, *row.interval] for row in rows], dtype=float)
    low, high = np.clip(percentile_interval(wider, len(values)), np.nanmin(ends), np.nanmax(ends))
    return (float(low), float(high))
