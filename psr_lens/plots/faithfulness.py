"""How closely replacements follow the prompt: next tokens by method, coefficients and explained energy by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Unpack

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.evaluation.faithfulness_result import BlockFaithfulness, Closeness, Faithfulness
from psr_lens.evaluation.methods import NONE, PARAPHRASE, PROMPT
from psr_lens.plots.layer_lines import BETWEEN, LEGEND_LINE, Point, layer_axes, legend_room, line, numbers, panels, with_legend
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import (
    MUTED,
    PAPER,
    MethodStyle,
    escaped,
    labelled_rows,
    log_ticks,
    real_units,
    role_of_sites,
    shown_name,
    styles_of,
    titled,
)
from psr_lens.results.bootstrap import Estimate

_ROW: Final = 24
_LEAST_KL: Final = 1e-7
"""In nats; smaller values are rounding errors and are drawn here."""
_LOWEST: Final = -0.25
"""Explained energy below this is drawn at the lower edge."""


@draws
def next_token(result: Faithfulness, block: str = "", **look: Unpack[Look]) -> go.Figure:
    """KL divergence and top-1 agreement of the next token with the prompted model, one row per method, with 95 % intervals.

    The paraphrase baseline is the same instruction in other words. Open markers compare with the paraphrases, which nothing was fitted on.

    Args:
        result: Result of `psr.faithfulness`.
        block: Kind of questions; by default the triplets themselves.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with two panels, KL above and agreement below; `customdata` holds values and intervals.

    Raises:
        InputError: not a `Faithfulness`, or no such block.

    Example:
        >>> result = psr.faithfulness(model, triplets[:4], {"A-PSR": pirate})
        >>> psr.plots.next_token(result).layout.yaxis.ticktext
        ('none', 'A-PSR')
    """
    found = _block(result, block)
    styles = _styles(found)
    names = [name for name in found.methods if name != PARAPHRASE] + ([PARAPHRASE] if PARAPHRASE in found.methods else [])
    labels = [escaped(shortened(shown_name(name), 20)) for name in names]
    height = _ROW * len(names) + 16
    plot = 2 * height + BETWEEN
    figure = make_subplots(2, 1, vertical_spacing=BETWEEN / plot)
    series: list[tuple[str, Mapping[str, Closeness]]] = [("the instruction", found.methods)]
    if found.paraphrased:
        paraphrased = {PARAPHRASE if name == PROMPT else name: each for name, each in found.paraphrased.items()}
        series.append(("held-out paraphrases", paraphrased))
    drawn: list[float] = []
    for number, (title, methods) in enumerate(series):
        heights = [row + (0.18 if number else -0.18) * (len(series) > 1) for row in range(len(names))]
        divergences = [_clipped(methods[name].divergence) for name in names]
        agreements = [numbers(methods[name].agreement) for name in names]
        drawn += [end for each in divergences for end in each if math.isfinite(end)]
        for row, values in enumerate((divergences, agreements), start=1):
            figure.add_trace(_dots(title, names, heights, values, styles, open_marker=number > 0, legend=row == 1), row=row, col=1)
    low, high = math.log10(min(drawn)) - 0.15, math.log10(max(drawn)) + 0.15
    ticks = log_ticks(low, high)
    figure.update_xaxes(
        title_text="KL(prompted ‖ method), nats",
        range=[low, high],
        tickvals=ticks,
        ticktext=[real_units(tick) for tick in ticks],
        row=1,
    )
    figure.update_xaxes(title_text="same top-1 token", tickformat=".0%", row=2)
    figure.update_yaxes(labelled_rows(labels, showline=True))
    note = f"{found.responses} responses, {int(next(iter(found.methods.values())).predicted.sum()):,} tokens."
    bottom = 50 + 2 * LEGEND_LINE * (len(series) > 1)
    titled(figure, f"Next token, against the prompted model{_of(block)}", plot=plot, top=50, bottom=bottom, left=136, note=note)
    figure.update_layout(
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -46 / plot, "yanchor": "top", "itemsizing": "constant"},
        showlegend=len(series) > 1,
    )
    return figure


@draws
def coefficient_correlation(result: Faithfulness, block: str = "", **look: Unpack[Look]) -> go.Figure:
    """Correlation over tokens between the coefficient that a site applies and the one that the prompt calls for, by layer.

    Args:
        result: Result of `psr.faithfulness`.
        block: Kind of questions; by default the triplets themselves.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with two panels, Pearson above and Spearman below, and one line per method whose coefficient varies.

    Raises:
        InputError: not a `Faithfulness`, or no such block.

    Example:
        >>> result = psr.faithfulness(model, triplets[:4], {"A-PSR": pirate})
        >>> psr.plots.coefficient_correlation(result).layout.title.text
        'Do coefficients follow the prompt?'
    """
    found = _block(result, block)
    styles = _styles(found)
    figure, plot = panels("Pearson correlation of coefficients", "Spearman correlation (of ranks)")
    without = [name for name, sites in found.sites.items() if not any(np.isfinite(site.pearson.value) for site in sites)]
    lowest = 0.0
    for name, sites in found.sites.items():
        if name in without:
            continue
        layers = [site.layer for site in sites]
        for row, values in enumerate(([site.pearson for site in sites], [site.spearman for site in sites]), start=1):
            points = [numbers(each) for each in values]
            lowest = min([lowest, *(end for each in points for end in each if math.isfinite(end))])
            line(figure, row, name, layers, points, styles[name], legend=row == 1)
    layer_axes(figure, result.layers)
    figure.update_yaxes(range=[lowest - 0.05 * (lowest < 0), 1.03], title_text="correlation")
    note = f"Not shown, with the same coefficient on every token: {', '.join(without)}." if without else ""
    bottom = legend_room(len(found.sites) - len(without))
    titled(figure, f"Do coefficients follow the prompt?{_of(block)}", plot=plot, top=72, bottom=bottom, left=58, note=note)
    return with_legend(figure, plot)


@draws
def explained_energy(result: Faithfulness, block: str = "", **look: Unpack[Look]) -> go.Figure:
    """Share of the prompt's effect that methods reproduce after each layer, and the most that each site could reproduce.

    Above: 1 − relative RMSE², of all of Δ_acc. Below, site by site, of what is still missing when an activation arrives: the share that the
    site fills in (solid), and the share within the span of its directions (dotted), the ceiling at this rank.

    Args:
        result: Result of `psr.faithfulness`.
        block: Kind of questions; by default the triplets themselves.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with two panels and one line per method, with 95 % intervals as bands.

    Raises:
        InputError: not a `Faithfulness`, or no such block.

    Example:
        >>> result = psr.faithfulness(model, triplets[:4], {"A-PSR": pirate})
        >>> psr.plots.explained_energy(result).layout.title.text
        'Share of the prompt’s effect reproduced'
    """
    found = _block(result, block)
    styles = _styles(found)
    figure, plot = panels("of the whole effect, after each layer", "of what is missing, at each site (dotted: ceiling)")
    layers, lowest = list(result.layers), 0.0
    for name, close in found.methods.items():
        if name == NONE:
            continue
        points = [_floored(numbers(close.explained, at)) for at in range(len(layers))]
        lowest = min([lowest, *(each[0] for each in points if math.isfinite(each[0]))])
        line(figure, 1, name, layers, points, styles[name], "baseline" if name == PARAPHRASE else "method", legend=True)
    for name, sites in found.sites.items():
        if not sites:  # an adapter
            continue
        at = [site.layer for site in sites]
        filled = [_floored(numbers(site.filled)) for site in sites]
        lowest = min([lowest, *(each[0] for each in filled if math.isfinite(each[0]))])
        line(figure, 2, name, at, filled, styles[name], legend=False)
        ceilings = [numbers(site.ceiling) for site in sites]
        line(figure, 2, f"{name}, ceiling", at, ceilings, styles[name], "ceiling", legend=False)
    layer_axes(figure, result.layers)
    figure.update_yaxes(range=[lowest - 0.04, 1.04], tickformat=".0%", title_text="share of the energy")
    note = f"Values below {_LOWEST:.0%} are drawn at the edge.".replace("-", "−") if lowest <= _LOWEST else ""
    title = f"Share of the prompt’s effect reproduced{_of(block)}"
    titled(figure, title, plot=plot, top=72, bottom=legend_room(len(found.methods) - 1), left=66, note=note)
    return with_legend(figure, plot)


def _block(result: Faithfulness, block: str) -> BlockFaithfulness:
    if block not in result.blocks:
        raise InputError("block", repr(block), f"one of {', '.join(map(repr, result.blocks))}")
    return result.blocks[block]


def _of(block: str) -> str:
    return f" · {escaped(shortened(block, 24))}" if block else ""


def _styles(block: BlockFaithfulness) -> dict[str, MethodStyle]:
    return styles_of({name: role_of_sites(sites) for name, sites in block.sites.items()})


def _clipped(found: Estimate) -> Point:
    value, low, high = (max(number, _LEAST_KL) for number in numbers(found))
    return value, low, high


def _floored(point: Point) -> Point:
    value, low, high = (max(number, _LOWEST) for number in point)
    return value, low, high


def _dots(
    title: str,
    names: Sequence[str],
    heights: Sequence[float],
    points: Sequence[Point],
    styles: Mapping[str, MethodStyle],
    *,
    open_marker: bool,
    legend: bool,
) -> go.Scatter:
    """One dot per method with its interval; in log10 on the panel of KL, the one with the legend."""
    shown = np.log10(np.array(points)) if legend else np.array(points)
    colors = [styles[name].color for name in names]
    return go.Scatter(
        name=title,
        x=shown[:, 0],
        y=list(heights),
        customdata=np.array(points),
        mode="markers",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": shown[:, 2] - shown[:, 0],
            "arrayminus": shown[:, 0] - shown[:, 1],
            "color": MUTED,
            "thickness": 1.2,
            "width": 3,
        },
        marker={
            "size": 9,
            "symbol": "circle",
            "color": PAPER if open_marker else colors,
            "line": {"color": colors, "width": 2},
        },
        hovertext=[escaped(name) for name in names],
        hovertemplate=f"%{{hovertext}}, {title}<br>%{{customdata[0]:.4g}} "
        "[%{customdata[1]:.4g}, %{customdata[2]:.4g}]<extra></extra>",
        showlegend=legend,
    )
