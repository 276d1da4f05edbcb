"""Heatmaps of shares, which may be negative: a diverging colour scale around 0, with its colour bar above the plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.plots.style import DIVERGING, SEQUENTIAL, SMALL, colour_bar, escaped

BAR: Final = 66
"""Pixels from the top of the colour bar's title to the plot."""
TURNED: Final = 18
"""Additional pixels below the plot for grouped layers, whose labels are vertical."""
_NARROW: Final = 12
_TEXT_UP_TO: Final = 12
_WRITTEN: Final = 8
"""Most cells of a panel that show their numbers."""


def share_panel(
    name: str,
    values: Float[Tensor, "row column"],
    columns: Sequence[str],
    rows: Sequence[str],
    hover: str,
    *,
    written: bool = False,
    percent: bool = True,
) -> go.Heatmap:
    """One panel. With `written`, the cells furthest from 0 show their numbers if columns are few, shares in percent."""
    few = written and len(columns) <= _TEXT_UP_TO
    return go.Heatmap(
        name=name,
        z=values.numpy(),
        x=list(columns),
        y=list(range(len(rows))),
        coloraxis="coloraxis",
        xgap=1 if len(columns) <= _NARROW else 0,
        ygap=1,
        text=_texts(values, percent) if few else None,
        texttemplate="%{text}" if few else None,
        textfont={"size": SMALL},
        hoverongaps=False,
        hovertemplate=f"{hover}<br>layer %{{x}}<br>%{{z:.3g}}<extra>{escaped(name)}</extra>",
    )


def _texts(values: Float[Tensor, "row column"], percent: bool) -> list[list[str]]:
    """The numbers of the `_WRITTEN` cells furthest from 0, and of those as far; the others, and those that would read 0, are empty."""
    if not values.numel():
        return [[] for _ in range(len(values))]
    sizes = values.abs().nan_to_num(nan=0.0)
    least = float(sizes.flatten().topk(min(_WRITTEN, sizes.numel())).values[-1])

    def text(value: float) -> str:
        if not math.isfinite(value) or abs(value) < least:
            return ""
        shown = f"{value:.0%}" if percent else f"{value:.2g}"
        return "" if shown in ("0%", "-0%", "0", "-0") else shown.replace("-", "−")

    return [[text(value) for value in row] for row in values.tolist()]


def share_axis(values: Float[Tensor, "..."], plot: int, title: str, *, signed: bool = True) -> dict[str, object]:
    """The colour axis: symmetric around 0, or starting at 0 for values that cannot be negative."""
    seen = values[values.isfinite()]
    limit = float(seen.abs().max()) if len(seen) else 1.0
    limit = limit if limit > 0 else 1.0
    return {
        "cmin": -limit if signed else 0,
        "cmax": limit,
        "colorscale": DIVERGING if signed else SEQUENTIAL,
        "colorbar": colour_bar(title, BAR / plot, nticks=5),
    }


def strongest(values: Float[Tensor, "row column"], tall: int, wide: int) -> Float[Tensor, "group_row group_column"]:
    """The value furthest from 0 of each group of `tall` rows and `wide` columns; NaN for a group of NaNs."""
    if tall == wide == 1:
        return values
    rows = [_furthest(values[at : at + tall], 0) for at in range(0, len(values), tall)]
    stacked = torch.stack(rows)
    return torch.stack([_furthest(stacked[:, at : at + wide], 1) for at in range(0, stacked.shape[1], wide)], dim=1)


def _furthest(values: Tensor, dim: int) -> Tensor:
    at = values.abs().nan_to_num(nan=-1.0).argmax(dim, keepdim=True)
    return values.gather(dim, at).squeeze(dim)


def grouped(count: int, size: int) -> list[str]:
    """Labels for groups of `size` consecutive numbers from 0."""
    if size == 1:
        return [str(number) for number in range(count)]
    return [f"{at}–{min(at + size, count) - 1}" for at in range(0, count, size)]


def strongest_note(sizes: dict[str, tuple[int, int]]) -> str:
    """A note for cells that hold several rows or columns; `sizes` has the number in all and per cell, by what they are."""
    shared = {word: (count, size) for word, (count, size) in sizes.items() if size > 1}
    if not shared:
        return ""
    counts = " and ".join(f"{count:,} {word}" for word, (count, _) in shared.items())
    cells = " × ".join(f"{size} {word}" for word, (_, size) in shared.items())
    return f"Each cell shows the value furthest from 0 of {cells}, out of {counts}."
