"""Small HTML tables, everything escaped: what a notebook shows for an object at the end of a cell."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from psr_lens._utils.numbers import is_real, is_whole

MAX_ROWS: Final = 64
"""Most rows shown; of a longer table, the first and the last."""


def table(head: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """Format a table as HTML.

    Args:
        head: Column names.
        rows: Cells, row by row; numbers are right-aligned with four significant digits.
        caption: A line above the table.
    """
    shown: list[Sequence[object]] = list(rows)
    if len(rows) > MAX_ROWS:
        half = MAX_ROWS // 2
        left_out = f"… {len(rows) - 2 * half} more"
        shown = [*rows[:half], [left_out, *[""] * (len(head) - 1)], *rows[-half:]]
    lines = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in shown)
    above = f'<caption style="caption-side:top;text-align:left">{html.escape(caption)}</caption>' if caption else ""
    headings = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in head)
    return f"<table>{above}<thead><tr>{headings}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(value: object) -> str:
    if not is_real(value):
        return f'<td style="text-align:left">{html.escape(str(value))}</td>'
    text = f"{value:,}" if is_whole(value) else f"{value:.4g}"
    return f'<td style="text-align:right">{text}</td>'
