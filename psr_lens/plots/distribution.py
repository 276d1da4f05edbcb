"""How ‖Δ‖ is distributed over tokens, by layer: a prompt pushes a few tokens much harder than the rest, a constant pushes all alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Unpack

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from psr_lens._utils.short_text import shortened
from psr_lens.activations.statistics import CapturedStatistics
from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PROMPT
from psr_lens.models.hook_points import KINDS, layer_of
from psr_lens.plots.hook_kinds import NAMES
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import PALETTE, MethodStyle, escaped, log_ticks, method_styles, real_units, titled, translucent

MAX_KINDS: Final = 6
"""Most kinds of hook points; of more, the first are drawn."""

_QUANTILES: Final = (0.01, 0.25, 0.5, 0.75, 0.99)
_BANDS: Final = ((0, 4, 0.14), (1, 3, 0.28))
"""Which of these quantiles a band spans, and its opacity."""
_DECADES: Final = 4.0
"""Largest range of the vertical axis, in powers of ten."""
_FIRST: Final = ("resid_post", "attn_out", "mlp_out")
_PANEL: Final = 170
_ALONE: Final = 280
"""Height of the only panel, in pixels."""
_BETWEEN: Final = 40
_TICKS: Final = 16
"""Most labelled layers."""


@dataclass(frozen=True)
class _Line:
    """What one line and its bands show."""

    name: str
    """Whose magnitudes."""
    style: MethodStyle
    """How it is drawn."""
    quantiles: Mapping[int, Sequence[float]]
    """The quantiles of ‖Δ‖ over tokens at each layer at which it is not 0 throughout."""


@draws
def magnitude_distribution(result: Comparison | CapturedStatistics, **look: Unpack[Look]) -> go.Figure:
    """Distribution of ‖Δ‖ over tokens by layer, on a log scale: a line at the median token, and bands of the middle 50 % and 98 %.

    Of a comparison there is one panel per replacement, which is drawn over the prompt; of a capture's statistics, one per kind of hook
    point. Layers at which no token is pushed are left out.

    Args:
        result: Result of `psr.compare`, or of `psr.capture(…, to=psr.Statistics())`.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with two bands and a line per distribution; the line's `customdata` holds the 1st, 25th, 50th, 75th and 99th percentile in
        the activation's units, `y` is the log10 of the median. What is more than four powers of ten below the largest, zeros included, is
        drawn at the lower edge.

    Raises:
        InputError: another type of result, or statistics without a hook point of a layer.

    Example:
        >>> [line.name for line in psr.plots.magnitude_distribution(comparison).data if line.name]
        ['prompt', 'A-PSR', 'prompt', 'CAA']
        >>> statistics = psr.capture(model, triplets[:4], "resid_post", to=psr.Statistics(rank=1))
        >>> [line.name for line in psr.plots.magnitude_distribution(statistics).data if line.name]
        ['residual']
    """
    if isinstance(result, Comparison):
        panels, tokens, left_out = _by_method(result), len(result.tokens), ""
    else:
        kinds = _by_kind(result)
        panels, tokens = kinds[:MAX_KINDS], next(iter(result.overall.values())).tokens
        left_out = f" {MAX_KINDS} of {len(kinds)} kinds of hook points." if len(kinds) > MAX_KINDS else ""
    low, high = _ends([value for lines in panels for line in lines for values in line.quantiles.values() for value in values])
    plot = _ALONE if len(panels) == 1 else len(panels) * _PANEL + (len(panels) - 1) * _BETWEEN
    figure = make_subplots(
        len(panels),
        1,
        shared_xaxes=True,
        vertical_spacing=_BETWEEN / plot if len(panels) > 1 else 0,
        subplot_titles=[
            "    ".join(f'<span style="color:{line.style.color}">■</span> {escaped(shortened(line.name, 24))}' for line in lines)
            for lines in panels
        ],
    )
    for row, lines in enumerate(panels, start=1):
        for line in lines:
            _bands(figure, row, line, low)
        for line in lines:
            _median(figure, row, line, low)
    _axes(figure, sorted({layer for lines in panels for line in lines for layer in line.quantiles}), low, high)
    note = f"Lines are medians; bands span 25 to 75 % and 1 to 99 % of {tokens:,} tokens.{left_out}"
    titled(figure, "Distribution of magnitude over tokens", plot=plot, top=66, bottom=48, left=64, note=note)
    return figure.update_layout(showlegend=False)


def _by_method(result: Comparison) -> list[list[_Line]]:
    """The prompt and a replacement in each panel."""
    styles = method_styles(result)
    magnitudes = {PROMPT: result.magnitude, **{name: trace.magnitude for name, trace in result.methods.items()}}
    lines = {
        name: _Line(name, styles[name], _pushed(dict(zip(result.layers, map(_quantiles, magnitude.T), strict=True))))
        for name, magnitude in magnitudes.items()
    }
    return [[lines[PROMPT], lines[name]] for name in result.methods]


def _by_kind(statistics: CapturedStatistics) -> list[list[_Line]]:
    """A kind of hook point in each panel, the most common ones first.

    Raises:
        InputError: no hook point of a layer.
    """
    endings = {pattern.removeprefix("blocks.*."): kind for kind, pattern in KINDS.items()}
    found: dict[str, dict[int, list[float]]] = {kind: {} for kind in _FIRST}
    for name, each in statistics.overall.items():
        layer = layer_of(name)
        if layer is not None:
            ending = name.removeprefix(f"blocks.{layer}.")
            found.setdefault(endings.get(ending, ending), {})[layer] = [each.quantile(q) for q in _QUANTILES]
    style = MethodStyle("prompt", PALETTE["prompt"], "circle")
    lines = [
        [_Line(NAMES.get(kind, kind), style, _pushed(dict(sorted(layers.items()))))] for kind, layers in found.items() if layers
    ]
    if not lines:
        raise InputError("result", ", ".join(statistics.overall) or "no hook points", "at least one hook point of a layer")
    return lines


def _quantiles(column: Float[Tensor, " token"]) -> list[float]:
    found: list[float] = column[column.isfinite()].double().quantile(torch.tensor(_QUANTILES, dtype=torch.float64)).tolist()
    return found


def _pushed(quantiles: Mapping[int, Sequence[float]]) -> dict[int, Sequence[float]]:
    return {layer: values for layer, values in quantiles.items() if values[-1] > 0}


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the vertical axis in log10."""
    sizes = [math.log10(value) for value in values if value > 0] or [0.0]
    high = max(sizes)
    low = max(min(sizes), high - _DECADES)
    return (low, high) if high - low >= 0.5 else (low - 0.5, high + 0.5)


def _bands(figure: go.Figure, row: int, line: _Line, low: float) -> None:
    layers = list(line.quantiles)
    for below, above, opacity in _BANDS:
        lower, upper = ([_drawn(values[at], low) for values in line.quantiles.values()] for at in (below, above))
        figure.add_scatter(
            x=[*layers, *reversed(layers)],
            y=np.array([*upper, *reversed(lower)], dtype=np.float32),
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=translucent(line.style.color, opacity),
            hoverinfo="skip",
            row=row,
            col=1,
        )


def _median(figure: go.Figure, row: int, line: _Line, low: float) -> None:
    figure.add_scatter(
        name=escaped(line.name),
        x=list(line.quantiles),
        y=np.array([_drawn(values[2], low) for values in line.quantiles.values()], dtype=np.float32),
        customdata=np.array(list(line.quantiles.values()), dtype=np.float32),
        mode="lines+markers",
        line={"color": line.style.color, "width": 2},
        marker={"color": line.style.color, "size": 5, "symbol": line.style.symbol},
        hovertemplate="layer %{x}: median %{customdata[2]:.3g}<br>25 % to 75 %: %{customdata[1]:.3g} to %{customdata[3]:.3g}<br>"
        "1 % to 99 %: %{customdata[0]:.3g} to %{customdata[4]:.3g}",
        row=row,
        col=1,
    )


def _drawn(value: float, low: float) -> float:
    return math.log10(max(value, 10**low))


def _axes(figure: go.Figure, layers: Sequence[int], low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    figure.update_yaxes(
        range=[low - 0.1, high + 0.1],
        tickvals=ticks,
        ticktext=[real_units(tick) for tick in ticks],
        title_text="magnitude ‖Δ‖",
        title_standoff=4,
    )
    first, last = (layers[0], layers[-1]) if layers else (0, 0)
    beside = 0.3 + 0.02 * (last - first)
    figure.update_xaxes(
        tickvals=layers[:: math.ceil(len(layers) / _TICKS) or 1],
        range=[first - beside, last + beside],
        showgrid=False,
        showline=True,
    )
    figure.update_xaxes(title_text="layer", title_standoff=4, row=len(list(figure.select_xaxes())), col=1)
    figure.update_annotations(x=0, xanchor="left", font_size=12)
