"""How much of a trait each way of carrying a replacement over keeps, as bars between a floor and a ceiling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import GRID, INK, MUTED, PALETTE, PAPER, SMALL, escaped, titled
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

_ROW: Final = 26
_LEFT: Final = 168
_LONGEST: Final = 26
_LABEL_LINE: Final = 16
"""Height of a line above the bars; floor and ceiling have one each, since they may be close together."""


@draws
def rungs(
    table: ResultTable, ceiling: str, floor: str, *, trait: str | None = None, metric: str = "trait", **look: Unpack[Look]
) -> go.Figure:
    """A bar for each method with its 95 % interval, between those of a floor and a ceiling.

    Over several traits a bar is the mean, and a point is one of them.

    Args:
        table: Rows with `metric`, one for each method, or one for each method and trait; bars are in their order.
        ceiling: The method that is the most to be expected, such as the target's own fit.
        floor: The method that is the least, such as a map of random numbers.
        trait: Only this trait; None for all that are in the table.
        metric: What is shown, from 0 to 100.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one trace of bars and, over several traits, one of points; `customdata` of the bars holds value and interval.

    Raises:
        InputError: no rows of this metric or trait, two for the same method and trait, a trait that some method lacks, or no floor or
            ceiling among the methods.

    Example:
        >>> rows = [("none", 1.0), ("random map", 9.0), ("gates", 92.0), ("native", 99.0)]
        >>> table = psr.ResultTable(tuple(psr.Result(name, "trait", value, 40, (value - 1, value + 1)) for name, value in rows))
        >>> psr.plots.rungs(table, "native", "random map").data[0].y
        ('gates', 'none')
    """
    rows = [row for row in table if row.metric == metric and trait in (None, row.trait)]
    if not rows:
        raise InputError(
            "table", repr(table), f"rows of the metric {metric!r}" + ("" if trait is None else f" and the trait {trait!r}")
        )
    methods, traits = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("method", "trait"))
    for name, given in (("ceiling", ceiling), ("floor", floor)):
        if given not in methods:
            raise InputError(name, repr(given), f"one of {', '.join(map(repr, methods))}")
    by = {(row.method, row.trait): row for row in rows}
    if len(by) < len(rows) or len(by) < len(methods) * len(traits):
        raise InputError("table", f"{len(rows)} rows of {len(methods)} methods and {len(traits)} traits", "one for each")
    shown = {name: _mean([by[name, each] for each in traits]) for name in methods}
    bars = sorted((name for name in methods if name not in (ceiling, floor)), key=lambda name: -shown[name].value)
    labels = [escaped(shortened(name, _LONGEST)) for name in bars]
    figure = go.Figure()
    low, high = shown[floor].value, shown[ceiling].value
    figure.add_vrect(x0=low, x1=high, fillcolor=GRID, opacity=0.45, line_width=0, layer="below")
    found = [shown[name] for name in bars]
    figure.add_bar(
        name=metric,
        orientation="h",
        x=[each.value for each in found],
        y=labels,
        width=0.62,
        marker={"color": PALETTE["A-PSR"]},
        error_x={
            "array": [_length(each.interval[1] - each.value) for each in found],
            "arrayminus": [_length(each.value - each.interval[0]) for each in found],
            "color": INK,
            "thickness": 1.2,
            "width": 4,
        },
        customdata=[[each.value, *each.interval] for each in found],
        hovertemplate="%{y}: %{customdata[0]:.1f} [%{customdata[1]:.1f}, %{customdata[2]:.1f}]<extra></extra>",
    )
    if len(traits) > 1:
        points = [(by[name, each].value, label, each) for name, label in zip(bars, labels, strict=True) for each in traits]
        figure.add_scatter(
            name="traits",
            mode="markers",
            x=[point[0] for point in points],
            y=[point[1] for point in points],
            marker={"color": PAPER, "size": 6, "line": {"color": MUTED, "width": 1.2}},
            text=[escaped(point[2]) for point in points],
            hovertemplate="%{y}, %{text}: %{x:.1f}<extra></extra>",
        )
    for line, (name, role, value, side) in enumerate(((floor, "floor", low, "left"), (ceiling, "ceiling", high, "right"))):
        figure.add_vline(x=value, line={"color": INK, "width": 1.5, "dash": "dash" if role == "floor" else "solid"})
        figure.add_annotation(
            x=value,
            y=1,
            yref="paper",
            yshift=2 + _LABEL_LINE * line,
            yanchor="bottom",
            xanchor=side,
            text=f"{role}: {escaped(shortened(name, 20))}",
            font={"size": SMALL, "color": MUTED},
        )
    figure.update_xaxes(range=[-2, 102], title_text=f"{metric}, 0–100")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    over = f"Mean of {len(traits)} traits; a point is one of them." if len(traits) > 1 else f"{found[0].n} questions."
    interval = " Bars have 95 % intervals." if any(math.isfinite(end) for each in found for end in each.interval) else ""
    title = "What is kept of the trait" if metric == "trait" else f"What is kept of: {metric}"
    of = f", {traits[0]}" if len(traits) == 1 and traits[0] else ""
    titled(figure, f"{title}{of}", plot=_ROW * len(bars) + 10, top=82, bottom=50, left=_LEFT, note=f"{over}{interval}")
    figure.update_layout(showlegend=False, bargap=0.3)
    return figure


def _mean(rows: Sequence[Result]) -> Result:
    """The mean over traits, whose interval says how it would vary with other traits."""
    return ResultTable(tuple(rows)).mean_over("trait").rows[0]


def _length(value: float) -> float:
    return max(0.0, value) if math.isfinite(value) else 0.0
