"""The tokens that directions promote and suppress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Unpack

import numpy as np
import plotly.graph_objects as go

from psr_lens._utils.numbers import is_whole
from psr_lens.errors import InputError
from psr_lens.interpretation.directions import LensRow, LogitLens
from psr_lens.plots.look import Look, draws, room
from psr_lens.plots.share_heatmap import BAR
from psr_lens.plots.sliders_and_buttons import steps_of, switched
from psr_lens.plots.style import DIVERGING, MUTED, SMALL, colour_bar, escaped, fitted, label_room, titled
from psr_lens.prompts.token_text import readable

MAX_ROWS: Final = 48
"""Most rows; of more directions, a slider shows those of one layer at a time, and of one layer's, the first."""
MAX_COLUMNS: Final = 6
"""Most promoted, and most suppressed, tokens per row."""

_ROW: Final = 24
_HEADER: Final = 18
"""Height of the words above the columns, in pixels."""
_BESIDE: Final = 12
_GAP: Final = 6
"""Pixels beside the table, and between words of neighbouring cells."""


@draws
def logit_lens(lens: LogitLens, *, columns: int = 3, **look: Unpack[Look]) -> go.Figure:
    """Tokens that each direction promotes, left, and suppresses, right, coloured by their logits.

    Up to 48 directions are rows of one table; for more, a slider selects among the layers.

    Args:
        lens: Result of `psr.logit_lens`.
        columns: Number of promoted, and of suppressed, tokens, at most 6; the most promoted is leftmost, the most suppressed rightmost.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one heatmap (for each layer), a row per direction; `customdata` holds the tokens as the vocabulary spells them, `z`
        the logits.

    Raises:
        InputError: not a `LogitLens`, one without directions, or `columns` out of range.

    Example:
        >>> figure = psr.plots.logit_lens(psr.logit_lens(model, pirate), columns=2)
        >>> figure.data[0].z.shape
        (24, 4)
    """
    if not lens.rows:
        raise InputError("lens", "no directions", "at least one")
    if not is_whole(columns) or not 1 <= columns <= MAX_COLUMNS:
        raise InputError("columns", repr(columns), f"1 to {MAX_COLUMNS}")
    columns = min(columns, *(len(row.promoted) for row in lens.rows))
    if len(lens.rows) <= MAX_ROWS:
        return _table(lens, lens.rows, columns)
    layers = list(dict.fromkeys(row.layer for row in lens.rows))
    middle = len(layers) // 2
    steps = steps_of(len(layers), middle)
    figures = [_table(lens, [row for row in lens.rows if row.layer == layers[index]], columns) for index in steps]
    labels = ["–" if layers[index] is None else str(layers[index]) for index in steps]
    return switched(figures, labels, "layer", steps.index(middle))


def _table(lens: LogitLens, some: Sequence[LensRow], columns: int) -> go.Figure:
    """The directions of some rows, on colours that are the same for all."""
    rows = some[:MAX_ROWS]
    spelled = [[*row.promoted[:columns], *reversed(row.suppressed[:columns])] for row in rows]
    alphabet = [token for row in lens.rows for token in (*row.promoted, *row.suppressed)]
    labels = [_label(row, lens) for row in rows]
    left = label_room(labels)
    cell = (room() - left - _BESIDE) / (2 * columns) - _GAP
    shown = [[escaped(fitted(text, cell)) for text in readable(line, alphabet)] for line in spelled]
    values = np.array(
        [[*row.promoted_logits[:columns].tolist(), *reversed(row.suppressed_logits[:columns].tolist())] for row in rows]
    )
    limit = max(float(part.abs().max()) for row in lens.rows for part in (row.promoted_logits, row.suppressed_logits)) or 1.0
    plot = len(rows) * _ROW
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(range(2 * columns)),
            y=list(range(len(rows))),
            text=shown,
            texttemplate="%{text}",
            textfont={"size": SMALL},
            customdata=[[escaped(token) for token in line] for line in spelled],
            colorscale=DIVERGING,
            zmin=-limit,
            zmax=limit,
            xgap=2,
            ygap=2,
            hovertemplate="%{y}<br>%{customdata}<br>%{z:+.2f} logits<extra></extra>",
            colorbar=colour_bar("logit", (BAR + _HEADER) / plot, nticks=5),
        )
    )
    figure.update_yaxes(
        tickmode="array",
        tickvals=list(range(len(rows))),
        ticktext=labels,
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        automargin=True,
    )
    figure.update_xaxes(
        tickmode="array",
        tickvals=[(columns - 1) / 2, columns + (columns - 1) / 2],
        ticktext=["promotes", "suppresses"],
        side="top",
        showgrid=False,
    )
    figure.add_vline(x=columns - 0.5, line={"color": MUTED, "width": 1})
    what = "Directions" if lens.part == "directions" else "Probes"
    note = f"The first {len(rows)} of {len(some)} directions." if len(rows) < len(some) else ""
    top = 54 + BAR + _HEADER  # a slider over layers stands right above it
    return titled(figure, f"{what} through the logit lens", plot=plot, top=top, bottom=12, left=left, note=note)


def _label(row: LensRow, lens: LogitLens) -> str:
    several = sum(other.hook == row.hook for other in lens.rows) > 1
    where = row.hook if row.layer is None else f"layer {row.layer}"
    mixed = len({other.hook.rsplit(".", 1)[-1] for other in lens.rows}) > 1
    kind = f" {row.hook.rsplit('.', 1)[-1].removeprefix('hook_')}" if mixed and row.layer is not None else ""
    return escaped(f"{where}{kind}") + (f' <span style="color:{MUTED}">#{row.direction}</span>' if several else "")
