"""Magnitude of the prompt's effect at each kind of hook point by layer, over all captured tokens."""

from __future__ import annotations

import math
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens.activations.statistics import CapturedStatistics
from psr_lens.errors import InputError
from psr_lens.models.hook_points import KINDS, layer_of
from psr_lens.plots.hook_kinds import NAMES
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import PALETTE, escaped, log_ticks, real_units, titled, translucent

MAX_LINES: Final = 6
"""Most lines; of more kinds of hook points, the first are drawn."""

_FIRST: Final = ("resid_post", "attn_out", "mlp_out")
_COLORS: Final = (PALETTE["prompt"], "#E69F00", PALETTE["paraphrase"], "#8C6D00", "#000000", PALETTE["none"])
_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "x", "cross")
_PLOT: Final = 280
_LEAST: Final = 1e-4
"""Magnitudes below this share of the largest are drawn at the lower edge."""
_LEGEND_LINE: Final = 20
_TICKS: Final = 16


@draws
def magnitude_profile(statistics: CapturedStatistics, **look: Unpack[Look]) -> go.Figure:
    """‖Δ‖ by layer, one line per kind of hook point: the median token, in a band from the 1st to the 99th percentile.

    Args:
        statistics: Result of `psr.capture(…, to=psr.Statistics())`.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one line and one band per kind; `customdata` holds quantiles in the activation's units, `y` their log10.

    Raises:
        InputError: not such statistics, or no hook point of a layer among them.

    Example:
        >>> statistics = psr.capture(model, triplets[:4], "resid_post", to=psr.Statistics(rank=1))
        >>> psr.plots.magnitude_profile(statistics).data[1].name
        'residual'
    """
    found = _by_kind(statistics)
    if not found:
        raise InputError("statistics", ", ".join(statistics.overall) or "no hook points", "at least one hook point of a layer")
    drawn = dict(list(found.items())[:MAX_LINES])
    high = max(quantiles[2] for layers in drawn.values() for quantiles in layers.values()) or 1.0
    low = high * _LEAST
    figure = go.Figure()
    for (kind, layers), color, symbol in zip(drawn.items(), _COLORS, _SYMBOLS, strict=False):
        name, at = escaped(NAMES.get(kind, kind)), list(layers)
        weak, median, strong = ([math.log10(max(value, low)) for value in values] for values in zip(*layers.values(), strict=True))
        figure.add_scatter(
            x=[*at, *reversed(at)],
            y=[*strong, *reversed(weak)],
            mode="lines",
            line={"width": 0},
            fill="toself",
            fillcolor=translucent(color, 0.15),
            hoverinfo="skip",
            showlegend=False,
            legendgroup=kind,
        )
        figure.add_scatter(
            name=name,
            x=at,
            y=median,
            customdata=list(layers.values()),
            mode="lines+markers",
            line={"color": color, "width": 2.5},
            marker={"symbol": symbol, "size": 8, "color": color},
            hovertemplate="layer %{x}: median %{customdata[1]:.3g}<br>1 % to 99 %: %{customdata[0]:.3g} to %{customdata[2]:.3g}",
            legendgroup=kind,
        )
    ends = [math.log10(max(value, low)) for layers in drawn.values() for quantiles in layers.values() for value in quantiles]
    bottom, top = min(ends) - 0.1, max(ends) + 0.1
    ticks = log_ticks(bottom, top)
    figure.update_yaxes(title_text="magnitude ‖Δ‖", range=[bottom, top], tickvals=ticks, ticktext=list(map(real_units, ticks)))
    all_layers = sorted({layer for some in drawn.values() for layer in some})
    beside = 0.3 + 0.02 * (all_layers[-1] - all_layers[0])
    figure.update_xaxes(
        title_text="layer",
        tickvals=all_layers[:: math.ceil(len(all_layers) / _TICKS)],
        range=[all_layers[0] - beside, all_layers[-1] + beside],
        showgrid=False,
        showline=True,
    )
    tokens = next(iter(statistics.overall.values())).tokens
    notes = [f"Median of {tokens:,} tokens; the band spans the 1st to the 99th percentile."]
    if len(drawn) < len(found):
        notes.append(f"{len(drawn)} of {len(found)} kinds of hook points.")
    room = 56 + _LEGEND_LINE * math.ceil(len(drawn) / 2)
    titled(figure, "Magnitude by part of a block", plot=_PLOT, top=50, bottom=room, left=64, note=" ".join(notes))
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": -46 / _PLOT, "yanchor": "top"}, showlegend=True)
    return figure


def _by_kind(statistics: CapturedStatistics) -> dict[str, dict[int, tuple[float, float, float]]]:
    """The 1st, 50th and 99th percentile at every layer, by short name of the kind; the most common kinds come first."""
    endings = {pattern.removeprefix("blocks.*."): kind for kind, pattern in KINDS.items()}
    found: dict[str, dict[int, tuple[float, float, float]]] = {}
    for name, each in statistics.overall.items():
        layer = layer_of(name)
        if layer is not None:
            ending = name.removeprefix(f"blocks.{layer}.")
            quantiles = (each.quantile(0.01), each.quantile(0.5), each.quantile(0.99))
            found.setdefault(endings.get(ending, ending), {})[layer] = quantiles
    order = [*(kind for kind in _FIRST if kind in found), *(kind for kind in found if kind not in _FIRST)]
    return {kind: dict(sorted(found[kind].items())) for kind in order}
