"""The distribution of ‖Δ‖ over tokens: a prompt pushes a few tokens much harder than the rest, a constant pushes all alike."""

from __future__ import annotations

import math
from typing import Final, Unpack

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from psr_lens._utils.short_text import shortened
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PROMPT
from psr_lens.plots.look import Look, draws, room
from psr_lens.plots.style import (
    MUTED,
    PAPER,
    SMALL,
    MethodStyle,
    escaped,
    log_ticks,
    method_styles,
    real_units,
    titled,
    translucent,
    wrapped,
)

MAX_VIOLINS: Final = 6
"""Most layers with violins; of more, which would be too narrow to compare, quantile bands are drawn."""
MAX_POINTS: Final = 20_000
"""Most points of all violins together. Of more tokens, evenly spaced ones in order of magnitude are drawn, ends included."""

_PANEL: Final = 190
_BETWEEN: Final = 80
_TOP: Final = 92
_BOTTOM: Final = 48
_DECADES: Final = 5.0
_BANDWIDTH: Final = 0.05
"""Bandwidth of the violins, in powers of ten. It is fixed, or a constant's violin would be as wide as the prompt's."""
_TIED: Final = "\N{NO-BREAK SPACE}"
_HALF_WIDTH: Final = 0.46
_TICKS: Final = 16
"""Most labelled layers."""
_BANDS: Final = ((0.01, 0.99, 0.14), (0.25, 0.75, 0.28))
"""Quantiles of tokens that bands span, and the bands' opacity."""


@draws
def magnitude_distribution(result: Comparison, **look: Unpack[Look]) -> go.Figure:
    """Distribution of ‖Δ‖ over all compared tokens after each layer, on a log scale: the prompt's, and a replacement's.

    Up to 6 layers, violins are drawn, the prompt's left and the replacement's right, with dots at medians. Of more layers, lines are
    medians, and bands span the 1st to 99th and the 25th to 75th percentile of tokens. Exact zeros (layers before the replacement's first,
    or a ReLU at 0) cannot be drawn on a log scale; they are left out, and their share is given above the panel.

    Args:
        result: Result of `psr.compare`.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one panel per replacement; `y` holds log10 of the magnitudes or of their quantiles.

    Raises:
        InputError: not a `Comparison`.

    Example:
        >>> psr.plots.magnitude_distribution(comparison).layout.title.text
        'Spread of magnitude over tokens'
    """
    styles = method_styles(result)
    layers = list(result.layers)
    violins = len(layers) <= MAX_VIOLINS
    magnitudes = {name: trace.magnitude for name, trace in result.methods.items()}
    points = min(401, max(101, MAX_POINTS // (2 * len(magnitudes) * len(layers))))
    plot = len(magnitudes) * _PANEL + (len(magnitudes) - 1) * _BETWEEN
    figure = make_subplots(
        rows=len(magnitudes),
        cols=1,
        vertical_spacing=_BETWEEN / plot if len(magnitudes) > 1 else 0,
        subplot_titles=[
            _heading(name, styles[name], styles[PROMPT], _zeros_note(magnitude, layers), violins)
            for name, magnitude in magnitudes.items()
        ],
    )
    for row, (name, magnitude) in enumerate(magnitudes.items(), start=1):
        for label, each in ((PROMPT, result.magnitude), (name, magnitude)):
            if violins:
                _half(figure, row, label, each, styles[label], points)
            else:
                _band(figure, row, label, each, layers, styles[label])
    _axes(figure, layers, violins, *_ends(result.magnitude, *magnitudes.values()))
    note = "Lines are medians; bands span 25 to 75 % and 1 to 99 % of tokens."
    if violins:
        tokens = len(result.tokens)
        note = f"Violins show {points} of {tokens:,} tokens, evenly spaced in order of magnitude." if tokens > points else ""
    titled(figure, "Spread of magnitude over tokens", plot=plot, top=_TOP, bottom=_BOTTOM, left=56, note=note)
    figure.update_layout(violinmode="overlay", showlegend=False)
    return figure


def _axes(figure: go.Figure, layers: list[int], violins: bool, low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    figure.update_yaxes(
        range=[low - 0.15, high + 0.15],
        tickvals=ticks,
        ticktext=[real_units(tick) for tick in ticks],
        title_text="magnitude ‖Δ‖",
        title_standoff=2,
    )
    every = math.ceil(len(layers) / _TICKS)
    edge = 0.6 if violins else 0.2
    figure.update_xaxes(
        tickvals=list(range(len(layers)))[::every],
        ticktext=[str(layer) for layer in layers][::every],
        range=[-edge, len(layers) - 1 + edge],
        showgrid=False,
    )
    figure.update_xaxes(title_text="layer", title_standoff=4, row=len(list(figure.select_xaxes())), col=1)
    figure.update_annotations(x=0, xanchor="left", align="left", font_size=12)


def _half(figure: go.Figure, row: int, name: str, magnitude: Float[Tensor, "token layer"], style: MethodStyle, points: int) -> None:
    """One half of every layer's violin, with its median: left for the prompt, right for a replacement."""
    side = "negative" if style.role == "prompt" else "positive"
    medians: list[tuple[int, float, str]] = []
    for index, column in enumerate(magnitude.T):
        pushed = column[column > 0].sort().values
        if not len(pushed):
            continue
        figure.add_violin(
            name=name,
            x0=index,
            y=_spaced(pushed, points).log10().numpy(),
            side=side,
            width=2 * _HALF_WIDTH,
            scalemode="width",
            bandwidth=_BANDWIDTH,
            points=False,
            fillcolor=translucent(style.color, 0.55),
            line={"color": style.color, "width": 1.2},
            hoverinfo="skip",
            row=row,
            col=1,
        )
        medians.append((index, float(pushed[len(pushed) // 2]), _numbers(pushed, len(column))))
    shift = 0.07 if side == "positive" else -0.07
    figure.add_scatter(
        name=f"{name}, median",
        x=[index + shift for index, _, _ in medians],
        y=[math.log10(median) for _, median, _ in medians],
        mode="markers",
        marker={"color": style.color, "size": 7, "line": {"color": PAPER, "width": 1.5}},
        hovertext=[numbers for _, _, numbers in medians],
        hovertemplate=f"{escaped(name)}<br>%{{hovertext}}<extra></extra>",
        row=row,
        col=1,
    )


def _band(
    figure: go.Figure, row: int, name: str, magnitude: Float[Tensor, "token layer"], layers: list[int], style: MethodStyle
) -> None:
    """Quantile bands over layers with a line at the median; layers at which no token is pushed are gaps."""
    found = {
        index: pushed
        for index, column in enumerate(magnitude.T)
        if len(pushed := column[column.isfinite() & (column > 0)].sort().values)
    }
    stretches: list[list[int]] = []
    for index in found:
        if not stretches or stretches[-1][-1] != index - 1:
            stretches.append([])
        stretches[-1].append(index)
    for stretch in stretches:
        for low, high, opacity in _BANDS:
            lower, upper = ([math.log10(_quantile(found[index], q)) for index in stretch] for q in (low, high))
            figure.add_scatter(
                name=name,
                x=[*stretch, *reversed(stretch)],
                y=[*upper, *reversed(lower)],
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=translucent(style.color, opacity),
                hoverinfo="skip",
                row=row,
                col=1,
            )
    at = list(range(len(layers)))
    figure.add_scatter(
        name=f"{name}, median",
        x=at,
        y=[math.log10(_quantile(found[index], 0.5)) if index in found else None for index in at],
        mode="lines+markers",
        line={"color": style.color, "width": 2},
        marker={"color": style.color, "size": 5, "symbol": style.symbol},
        hovertext=[f"layer {layers[index]}<br>{_numbers(found[index], len(magnitude))}" if index in found else "" for index in at],
        hovertemplate=f"{escaped(name)}<br>%{{hovertext}}<extra></extra>",
        row=row,
        col=1,
    )


def _quantile(ordered: Float[Tensor, " token"], q: float) -> float:
    return float(ordered[round(q * (len(ordered) - 1))])


def _numbers(pushed: Float[Tensor, " token"], total: int) -> str:
    weak, median, strong = (_quantile(pushed, q) for q in (0.01, 0.5, 0.99))
    return (
        f"median {median:.3g}<br>1 % to 99 %: {weak:.3g} to {strong:.3g}"
        f"<br>largest {float(pushed[-1]):.3g}<br>{len(pushed):,} of {total:,} tokens above 0"
    )


def _spaced(ordered: Float[Tensor, " token"], points: int) -> Float[Tensor, " drawn"]:
    if len(ordered) <= points:
        return ordered
    return ordered[torch.linspace(0, len(ordered) - 1, points, dtype=torch.float64).round().long()]


def _ends(*magnitudes: Float[Tensor, "token layer"]) -> tuple[float, float]:
    every = torch.cat([magnitude.flatten() for magnitude in magnitudes])
    every = every[every.isfinite() & (every > 0)]
    if not len(every):
        return 0.0, 1.0
    high = math.log10(float(every.max()))
    low = max(math.log10(float(every.min())), high - _DECADES)
    return (low, high) if high - low >= 0.5 else (low - 0.5, high + 0.5)


def _heading(name: str, style: MethodStyle, prompt: MethodStyle, note: str, violins: bool) -> str:
    swatches = "    ".join(
        f'<span style="color:{each.color}">■</span> {escaped(shortened(label, 24))}' + (f" ({side})" if violins else "")
        for label, each, side in ((PROMPT, prompt, "left"), (name, style, "right"))
    )
    return swatches + (f'<br><span style="color:{MUTED};font-size:{SMALL}px">{wrapped(note, room() - 66)}</span>' if note else "")


def _zeros_note(magnitude: Float[Tensor, "token layer"], layers: list[int]) -> str:
    """A note on the tokens that are left out of the violins because they are exactly 0."""
    shares = dict(zip(layers, (magnitude == 0).float().mean(dim=0).tolist(), strict=True))
    silent = [layer for layer, share in shares.items() if share == 1]
    partly = [layer for layer, share in shares.items() if 0 < share < 1]
    notes = []
    if silent:
        notes.append(f"all tokens at {_listed(silent, layers)}")
    if partly:
        most = max(shares[layer] for layer in partly)
        share = f"{'up to ' if len(partly) > 1 else ''}{100 * most:.0f}{_TIED}%" if most >= 0.01 else f"under 1{_TIED}%"
        notes.append(f"{share}{'' if silent else ' of tokens'} at {_listed(partly, layers)}")
    return f"zeros left out: {', '.join(notes)}" if notes else ""


def _listed(some: list[int], layers: list[int]) -> str:
    """Layers in a few words: "layers 0, 1 and 5", or "layers 0 to 7" if all drawn layers in between are among them."""
    if len(some) == 1:
        return f"layer{_TIED}{some[0]}"
    if len(some) <= 3:
        return f"layers {', '.join(map(str, some[:-1]))} and {some[-1]}"
    start = layers.index(some[0])
    if layers[start : start + len(some)] == some:
        return f"layers {some[0]} to {some[-1]}"
    return f"{len(some)} of the layers"
