"""How far steered activations are from those that prompts lead to."""

from __future__ import annotations

import math
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens.evaluation.methods import NONE, PROMPT
from psr_lens.evaluation.reach_result import FAR, Reach
from psr_lens.plots.layer_lines import Kind, Point, layer_axes, legend_room, line, numbers, panels, with_legend
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import GRID, log_ticks, named_styles, real_units, titled

_LEAST: Final = 1e-3
"""Relative distances below this are drawn here."""


@draws
def reach(result: Reach, **look: Unpack[Look]) -> go.Figure:
    """Distance from the nearest activation that a prompt leads to, by layer: the prompt, no steering and each method.

    Above, the median token, relative to that of prompted runs, on a log scale. Below, the share of tokens that are farther away than 95 %
    of the tokens of prompted runs. Bands are 95 % intervals over responses.

    Args:
        result: Result of `psr.reach`.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with two panels and one line per method in each; `y` of the upper one is log10 of the relative distance, `customdata`
        has the ends of the interval.

    Raises:
        InputError: not a `Reach`.

    Example:
        >>> figure = psr.plots.reach(psr.reach(model, triplets, {"A-PSR": pirate, "CAA": caa}))
        >>> [trace.name for trace in figure.data if trace.showlegend]
        ['prompt', 'none', 'A-PSR', 'CAA']
    """
    styles, layers = named_styles(list(result.distance)), list(result.layers)
    figure, plot = panels("of the median token, relative to prompted runs", f"farther than {FAR:.0%} of prompted tokens")
    drawn = [0.0]
    for name in result.distance:
        near, far = result.relative(name), result.far(name)
        points = [numbers(near, column) for column in range(len(layers))]
        logs = [_log(point) for point in points]
        drawn += [end for each in logs for end in each if math.isfinite(end)]
        kind: Kind = "baseline" if name in (PROMPT, NONE) else "method"
        line(figure, 1, name, layers, logs, styles[name], kind, legend=True)
        figure.data[-1].update(customdata=points, hovertemplate=f"layer %{{x}}: {_HOVER}")
        line(figure, 2, name, layers, [numbers(far, column) for column in range(len(layers))], styles[name], kind, legend=False)
    low, high = min(drawn) - 0.03, max(drawn) + 0.03
    ticks = log_ticks(low, high)
    layer_axes(figure, layers)
    figure.add_hline(y=0, line={"color": GRID, "width": 2}, layer="below", row=1)
    figure.update_yaxes(
        range=[low, high], tickvals=ticks, ticktext=[real_units(tick) for tick in ticks], title_text="relative distance", row=1
    )
    figure.update_yaxes(rangemode="tozero", tickformat=".0%", title_text="share of tokens", row=2)
    note = f"{result.size}; the nearest of another question and response. Bands are 95 % intervals."
    bottom = legend_room(len(result.distance))
    titled(figure, "Distance from what prompts lead to", plot=plot, top=72, bottom=bottom, left=66, note=note)
    return with_legend(figure, plot)


_HOVER: Final = "%{customdata[0]:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}]"


def _log(point: Point) -> Point:
    value, low, high = (math.log10(max(each, _LEAST)) if math.isfinite(each) else each for each in point)
    return value, low, high
