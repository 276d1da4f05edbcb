"""Trait against coherence as the strength α varies, one line per method."""

from __future__ import annotations

import math
from collections import Counter
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens.errors import InputError
from psr_lens.evaluation.evaluation_result import Evaluation
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import MUTED, PAPER, SMALL, MethodStyle, escaped, named_styles, titled
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

_PLOT: Final = 420
_DASHES: Final = ("solid", "dash", "dot", "dashdot")
_LEGEND_LINE: Final = 22
_LEGEND_COLUMNS: Final = 2
_MOST_TICKS: Final = 8


@draws
def pareto(result: Evaluation | ResultTable, **look: Unpack[Look]) -> go.Figure:
    """Mean trait against mean coherence of every method, one point per strength α; up and to the right is better.

    A method's line goes from its smallest strength to its largest; the hover text has strength, scores and 95 % intervals. The star is the
    prompt, the grey circle the unsteered model; both are hollow, so that a method's point inside them can be seen. A dotted line is a
    target coherence at which methods are compared.

    Args:
        result: Result of `psr.evaluate`, or its table. Of a table with several traits or kinds of questions, `select` one or take their
            mean with `mean_over`.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one line per method.

    Raises:
        InputError: another type of result, one without trait and coherence, or several traits or kinds of questions.

    Example:
        >>> rows = [psr.Result("A-PSR", metric, value, 8, (0.0, 100.0), alpha=1.0) for metric, value in
        ...         [("trait", 96.0), ("coherence", 97.0)]]
        >>> psr.plots.pareto(psr.ResultTable(tuple(rows))).data[0].y
        (96.0,)
    """
    table = result.table() if isinstance(result, Evaluation) else result
    curves = _curves(table)
    names = sorted(curves, key=lambda name: name in ("none", "prompt"))  # single points are drawn above the lines
    styles = named_styles(list(curves))
    figure = go.Figure()
    seen: Counter[str] = Counter()
    for name in names:
        style = styles[name]
        _add(figure, name, curves[name], style, _DASHES[seen[style.color] % len(_DASHES)])
        seen[style.color] += 1
    points = [point for curve in curves.values() for point in curve]
    low = min(0.0, *(point[0].value for point in points)) if points else 0.0
    left = max(-2.0, min(point[1].value for point in points) - 4)
    for metric, target in _targets(table).items():
        if left <= target <= 100:
            figure.add_vline(
                x=target,
                line={"color": MUTED, "width": 1, "dash": "dot"},
                annotation={
                    "text": escaped(metric),
                    "font": {"size": SMALL, "color": MUTED},
                    "bgcolor": PAPER,
                    "yshift": 16,
                    "xanchor": "right",
                },
                annotation_position="top",
            )
    step = next(each for each in (1, 2, 5, 10, 20) if 100 - left <= each * _MOST_TICKS)
    ticks = [tick for tick in range(0, 101, step) if tick >= left]  # no score is above 100, though the axis ends later
    figure.update_xaxes(title_text="coherence", range=[left, 102.5], tickvals=ticks, showline=True)
    figure.update_yaxes(title_text="trait", range=[low - 3, 103])
    lines = math.ceil(len(names) / _LEGEND_COLUMNS)
    titled(figure, "Trait against coherence", plot=_PLOT, top=70, bottom=60 + lines * _LEGEND_LINE, left=60)
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "y": -50 / _PLOT, "yanchor": "top", "entrywidth": 1 / _LEGEND_COLUMNS},
        legend_entrywidthmode="fraction",
        showlegend=True,
        hovermode="closest",
    )
    return figure


def _add(figure: go.Figure, name: str, curve: list[tuple[Result, Result]], style: MethodStyle, dash: str) -> None:
    alone = name in ("none", "prompt")
    figure.add_scatter(
        name=escaped(name),
        x=[coherence.value for _, coherence in curve],
        y=[trait.value for trait, _ in curve],
        text=[_hover(name, trait, coherence) for trait, coherence in curve],
        hovertemplate="%{text}<extra></extra>",
        mode="markers" if alone else "lines+markers",
        line={"color": style.color, "width": 2, "dash": dash},
        marker={
            "color": style.color,
            "size": 17 if name == "prompt" else 14 if alone else 8,
            "symbol": "star-open" if name == "prompt" else "circle-open" if alone else style.symbol,
            "line": {"width": 2} if alone else {"color": PAPER, "width": 1},
        },
    )


def _hover(name: str, trait: Result, coherence: Result) -> str:
    strength = "" if trait.alpha is None else f", α = {trait.alpha:g}"
    scores = [f"{row.metric} {row.value:.1f} [{row.interval[0]:.1f}, {row.interval[1]:.1f}]" for row in (trait, coherence)]
    missing = f"<br>{trait.missing} missing" if trait.missing else ""
    return f"<b>{escaped(name)}</b>{strength}<br>{'<br>'.join(scores)}{missing}"


def _curves(table: ResultTable) -> dict[str, list[tuple[Result, Result]]]:
    """Trait and coherence of every method by ascending strength; strengths without both are left out."""
    scores = [row for row in table if row.metric in ("trait", "coherence")]
    for field in ("trait", "block"):
        found = list(dict.fromkeys(getattr(row, field) for row in scores))
        if len(found) > 1:
            remedy = f"Use `table.select({field}={found[0]!r})` for one, or `table.mean_over({field!r})` for their mean."
            raise InputError(
                "result", f"results of several {field}s ({', '.join(map(repr, found))})", f"those of one {field}", remedy
            )
    pairs: dict[tuple[str, float | None], dict[str, Result]] = {}
    for row in scores:
        pairs.setdefault((row.method, row.alpha), {})[row.metric] = row
    curves: dict[str, list[tuple[Result, Result]]] = {}
    for (method, _), both in pairs.items():
        if len(both) == 2 and not any(math.isnan(row.value) for row in both.values()):
            curves.setdefault(method, []).append((both["trait"], both["coherence"]))
    if not curves:
        raise InputError(
            "result", f"{len(table)} rows without trait and coherence at one strength", "the result of `psr.evaluate` or its table"
        )
    return {method: sorted(curve, key=lambda each: each[0].alpha or 0.0) for method, curve in curves.items()}


def _targets(table: ResultTable) -> dict[str, float]:
    found = table.settings.get("targets")
    return (
        {str(key): float(value) for key, value in found.items() if isinstance(value, int | float)}
        if isinstance(found, dict)
        else {}
    )
