"""How many directions hold the effect of a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens.activations.statistics import CapturedStatistics
from psr_lens.errors import InputError
from psr_lens.models.hook_points import layer_of, point_of
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import escaped, layer_colors, titled

MAX_LINES: Final = 12
"""Most lines; of more hook points, evenly spaced ones are drawn."""

_PLOT: Final = 280


@draws
def rank_energy(statistics: CapturedStatistics, hooks: Sequence[str] | None = None, **look: Unpack[Look]) -> go.Figure:
    """Share of Δ's energy in its first k singular directions, one line per hook point (assumption 3.1 of Heyman & Vandeputte 2026).

    Args:
        statistics: Result of `psr.capture(…, to=psr.Statistics(rank=…))`.
        hooks: Hook points to draw; all by default.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure whose lines end at the rank that was kept.

    Raises:
        InputError: not such statistics, a hook point that was not captured, or no hook point with any energy.

    Example:
        >>> statistics = psr.capture(model, triplets[:4], "resid_post", to=psr.Statistics(rank=3))
        >>> figure = psr.plots.rank_energy(statistics)
        >>> figure.data[0].name
        'layer 0'
    """
    names = [name for name in (hooks or statistics.overall) if statistics[name].energy > 0]
    if not names:
        raise InputError("statistics", "hook points without a difference", "at least one with a Δ other than 0")
    step = -(-len(names) // MAX_LINES)
    drawn = names[::step]
    figure = go.Figure()
    for name, color in zip(drawn, layer_colors(len(drawn)), strict=True):
        found = statistics[name]
        ranks = list(range(1, len(found.singular_values) + 1))
        label = _label(name, drawn)
        figure.add_scatter(
            name=escaped(label),
            x=ranks,
            y=[found.rank_share(rank) for rank in ranks],
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"size": 5},
            hovertemplate=f"{escaped(label)}<br>first %{{x}} directions: %{{y:.1%}}<extra></extra>",
        )
    most = max(len(statistics[name].singular_values) for name in drawn)
    figure.update_xaxes(
        title_text="number of singular directions",
        dtick=1 if most <= 16 else None,
        range=[0.7, most + 0.3],
        showgrid=False,
        showline=True,
    )
    figure.update_yaxes(title_text="share of the energy of Δ", range=[0, 1.02], tickformat=".0%")
    note = f"{len(drawn)} of {len(names)} hook points, evenly spaced." if step > 1 else ""
    bottom = 54 + 20 * math.ceil(len(drawn) / 2)  # in a narrow window
    titled(
        figure,
        "Share of Δ in its first directions",
        plot=_PLOT,
        top=50,
        bottom=bottom,
        left=64,
        note=note,
    )
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": -46 / _PLOT, "yanchor": "top"}, showlegend=True)
    return figure


def _label(name: str, drawn: Sequence[str]) -> str:
    layer, kinds = layer_of(name), {point_of(each) for each in drawn}
    if layer is None or len(kinds) > 1:
        return name.replace("blocks.", "").replace("hook_", "")
    return f"layer {layer}"
