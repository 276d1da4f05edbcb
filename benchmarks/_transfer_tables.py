"""The tables of `transfer.py`'s numbers: what each rung keeps, and every number of a trait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from _numbers import kl_cell, scores_cell

KEPT, COHERENT = 0.9, 5.0
"""A rung keeps a trait if it has this share of the native fit's score, and at most so much less coherence.

Where the judge gives none, it is the share of repeated trigrams that may be so much higher.
"""
NATIVE: Final = "native"
GROUPS: Final = (
    (
        NATIVE,
        "through text",
        "gates, plain map",
        "gates, wide plain map",
        "gates, others' map",
        "gates through text, plain map",
        "co-pilot",
        "gates, shuffled map",
        "gates, random map",
        "constants",
    ),
    (NATIVE, "whole, ridge", "whole, procrustes", "whole, anchors", "whole, differences"),
)
"""The cells of each table of a pair of models."""


def summary_of(models: str, content: dict[str, Any], at: str, cells: Sequence[str]) -> list[list[str]]:
    """A row for each trait: trait / coherence of the cells that are measured; the last row counts what is kept.

    Args:
        models: A key of the numbers' `models`.
        content: The numbers.
        at: `alpha 1` or `calibrated`.
        cells: Cells, in the order of the columns.
    """
    traits = content["models"][models]["traits"]
    cells = [name for name in cells if any(at in held.get(name, ()) for held in traits.values())]
    rows, kept, count = [], dict.fromkeys(cells, 0), dict.fromkeys(cells, 0)
    for trait, held in traits.items():
        native = held[NATIVE][at]
        row = [trait]
        for name in cells:
            if at not in held.get(name, ()):
                row.append("–")
                continue
            found = held[name][at]
            lost = native["coherence"] - found["coherence"] if "coherence" in native else found["repeated"] - native["repeated"]
            keeps = found["trait"] >= KEPT * native["trait"] and lost <= COHERENT
            kept[name] += keeps
            count[name] += 1
            beside = f"{found['coherence']:.0f}" if "coherence" in found else f"{found['repeated']:.0f} %"
            shown = f"{found['trait']:.0f} / {beside}"
            row.append(shown if keeps else f"*{shown}*")
        rows.append(row)
    return [["trait", *cells], *rows, ["kept", *(f"{kept[name]} of {count[name]}" for name in cells)]]


def table_of(content: dict[str, Any]) -> str:
    """The numbers as Markdown, a table for each pair of models and trait."""
    lines: list[str] = []
    for models, found in content["models"].items():
        for trait, held in found["traits"].items():
            r2 = ", ".join(f"{value:.2f}" for value in held["gate R²"])
            lines += [f"{models}, {trait} ({held['triplets']} texts, {held['prompt']['n']} held-out questions; gate R² {r2})", ""]
            heads = ("", "α 1", "α", "at that α", "KL", "made in")
            lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
            for name, row in held.items():
                if name in ("unsteered", "prompt"):
                    cells = [scores_cell(row), "–", "–", kl_cell(row.get("kl")), "–"]
                elif isinstance(row, dict) and "alpha 1" in row:
                    at = ["–", "–"] if "calibrated" not in row else [f"{row['recommended']:g}", scores_cell(row["calibrated"])]
                    cells = [scores_cell(row["alpha 1"]), *at, kl_cell(row.get("kl")), f"{row['seconds']:.0f} s"]
                else:
                    continue
                lines.append(f"| {' | '.join([name, *cells])} |")
            lines.append("")
    return "\n".join(lines)
