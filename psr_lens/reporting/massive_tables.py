"""The tokens with massive activations on the page: a table by token, and what they do to the relative RMSE, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from psr_lens.activations.massive_activations import listing
from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots.style import shown_name
from psr_lens.reporting.comparison_text import LEAST_CHANGE, changed_by_massive, number

_LISTED: Final = 20
"""Most tokens that are listed."""


@dataclass(frozen=True)
class MassiveTables:
    """What the page says about massive activations."""

    summary: str
    """How many there are, in a sentence."""
    token_head: Sequence[str]
    """Headings of the table by token."""
    token_rows: Sequence[Sequence[object]]
    """Its rows."""
    left_out: int
    """Number of tokens that are not listed."""
    layer_head: Sequence[str]
    """Headings of the table by layer."""
    layer_rows: Sequence[Sequence[object]]
    """Its rows, one for each layer with massive tokens, or where they change a number."""


def massive_tables(comparison: Comparison) -> MassiveTables | None:
    """The tables of a comparison; None if there are no massive tokens in it, or they were not looked for."""
    found = comparison.massive
    if found is None or not found.tokens:
        return None
    head, rows = listing(found)
    distances = comparison.distances

    def three(name: str, column: int) -> str:
        each = distances[name]
        return " / ".join(number(float(values[column]), 2) for values in (each.relative_rmse, each.without_massive, each.median))

    counts = {context: found.count(context).tolist() for context in found.typical}
    without = [changed_by_massive(each) > LEAST_CHANGE for each in distances.values()]
    changed = torch.stack([found.count() > 0, *without]).any(dim=0).nonzero().flatten().tolist()
    layer_rows = [
        (layer, *(count[column] for count in counts.values()), *(three(name, column) for name in distances))
        for column, layer in enumerate(comparison.layers)
        if column in changed
    ]
    layer_head = ["after layer", *(f"tokens, {context}" for context in counts), *map(shown_name, distances)]
    return MassiveTables(found.summary, head, rows[:_LISTED], max(0, len(rows) - _LISTED), layer_head, layer_rows)
