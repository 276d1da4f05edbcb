"""The distribution of ‖Δ‖ over tokens: a prompt pushes a few tokens much harder than the rest, a constant pushes all alike."""

from __future__ import annotations

import math
from typing import Final

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PROMPT
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
from psr_lens.plots.token_rows import shortened

MAX_LAYERS: Final = 12
"""Most layers drawn; of more, evenly spaced ones are drawn."""
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


@checks_arguments
def magnitude_distribution(result: Comparison) -> go.Figure:
    """Distribution of ‖Δ‖ over all compared tokens after each layer, on a log scale: the prompt left, a replacement right.

    Exact zeros (layers before the replacement's first, or a ReLU at 0) cannot be drawn on a log scale; they are left out, and their share
    is given above the panel. Dots are medians.

    Args:
        result: Result of `psr.compare`.

    Returns:
        A figure with one panel per replacement; the violins' `y` holds log10 of the magnitudes.

    Raises:
        InputError: not a `Comparison`.

    Example:
        >>> psr.plots.magnitude_distribution(comparison).layout.title.text
        'Spread of magnitude over tokens'
    """
    styles = method_styles(result)
    columns = _chosen_layers(len(result.layers))
    layers = [result.layers[column] for column in columns]
    prompt = result.magnitude[:, columns]
    magnitudes = {name: trace.magnitude[:, columns] for name, trace in result.methods.items()}
    points = min(401, max(101, MAX_POINTS // (2 * len(magnitudes) * len(layers))))
    plot = len(magnitudes) * _PANEL + (len(magnitudes) - 1) * _BETWEEN
    figure = make_subplots(
        rows=len(magnitudes),
        cols=1,
        vertical_spacing=_BETWEEN / plot if len(magnitudes) > 1 else 0,
        subplot_titles=[
            _heading(name, styles[name], styles[PROMPT], _zeros_note(magnitude, layers)) for name, magnitude in magnitudes.items()
        ],
    )
    for row, (name, magnitude) in enumerate(magnitudes.items(), start=1):
        _half(figure, row, PROMPT, prompt, styles[PROMPT], points)
        _half(figure, row, name, magnitude, styles[name], points)
    _axes(figure, layers, *_ends(prompt, *magnitudes.values()))
    note = _drawing_note(len(prompt), points, len(columns), len(result.layers))
    titled(figure, "Spread of magnitude over tokens", plot=plot, top=_TOP, bottom=_BOTTOM, left=56, note=note)
    figure.update_layout(violinmode="overlay", showlegend=False)
    return figure


def _axes(figure: go.Figure, layers: list[int], low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    figure.update_yaxes(
        range=[low - 0.15, high + 0.15],
        tickvals=ticks,
        ticktext=[real_units(tick) for tick in ticks],
        title_text="magnitude ‖Δ‖",
        title_standoff=2,
    )
    figure.update_xaxes(
        tickvals=list(range(len(layers))),
        ticktext=[str(layer) for layer in layers],
        range=[-0.6, len(layers) - 0.4],
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


def _numbers(pushed: Float[Tensor, " token"], total: int) -> str:
    weak, median, strong = (float(pushed[round(q * (len(pushed) - 1))]) for q in (0.01, 0.5, 0.99))
    return (
        f"median {median:.3g}<br>1 % to 99 %: {weak:.3g} to {strong:.3g}"
        f"<br>largest {float(pushed[-1]):.3g}<br>{len(pushed):,} of {total:,} tokens above 0"
    )


def _spaced(ordered: Float[Tensor, " token"], points: int) -> Float[Tensor, " drawn"]:
    if len(ordered) <= points:
        return ordered
    return ordered[torch.linspace(0, len(ordered) - 1, points, dtype=torch.float64).round().long()]


def _chosen_layers(count: int) -> list[int]:
    if count <= MAX_LAYERS:
        return list(range(count))
    return sorted({round(step * (count - 1) / (MAX_LAYERS - 1)) for step in range(MAX_LAYERS)})


def _ends(*magnitudes: Float[Tensor, "token layer"]) -> tuple[float, float]:
    every = torch.cat([magnitude.flatten() for magnitude in magnitudes])
    every = every[every.isfinite() & (every > 0)]
    if not len(every):
        return 0.0, 1.0
    high = math.log10(float(every.max()))
    low = max(math.log10(float(every.min())), high - _DECADES)
    return (low, high) if high - low >= 0.5 else (low - 0.5, high + 0.5)


def _heading(name: str, style: MethodStyle, prompt: MethodStyle, note: str) -> str:
    swatches = "    ".join(
        f'<span style="color:{each.color}">■</span> {escaped(shortened(label, 24))} ({side})'
        for label, each, side in ((PROMPT, prompt, "left"), (name, style, "right"))
    )
    return swatches + (f'<br><span style="color:{MUTED};font-size:{SMALL}px">{wrapped(note, 46)}</span>' if note else "")


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


def _drawing_note(tokens: int, points: int, drawn: int, layers: int) -> str:
    notes = []
    if tokens > points:
        notes.append(f"Violins show {points} of {tokens:,} tokens, evenly spaced in order of magnitude.")
    if drawn < layers:
        notes.append(f"{drawn} of {layers} layers, evenly spaced.")
    return " ".join(notes)
