"""Magnitude ‖Δ‖ of the prompt and of each replacement by token and layer, and the parts that other heatmaps share."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Final

import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from plotly.subplots import make_subplots
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.sequences import ranges
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PROMPT
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.style import SEQUENTIAL, SMALL, colour_bar, escaped, log_ticks, real_units, titled
from psr_lens.plots.token_rows import Tokened, row_labels, rows_of, shortened, signed, traces_of

MAX_LAYERS: Final = 64
"""Most layers drawn one by one; more are drawn in groups."""

ROW: Final = 17
"""Height of a token's row in pixels: one line of text."""
LEAST: Final = 72
"""Smallest height of a panel in pixels."""
TOP: Final = 128
"""Pixels for the title and the colour bar."""
_TITLE_LINE: Final = 15
BOTTOM: Final = 52
"""Pixels for the layer numbers and the axis title."""
_NARROW: Final = 12
"""Most layers with gaps between their cells; in a narrow window, more gaps would hide the cells."""
_LABELS: Final = 100
"""Most rows that are all labelled; of more rows, every n-th is."""
_PANELS: Final = 5
_DECADES: Final = 4.0
"""Largest range of the colour scale, in powers of ten."""


@checks_arguments
def magnitude_heatmap(
    result: Comparison, triplet: int = 0, methods: Sequence[str] | None = None, *, max_tokens: int = 400
) -> go.Figure:
    """‖Δ‖ after each layer on one response, for the prompt and for each replacement: one panel each, with a common colour scale.

    Rows are tokens in reading order. Tokens before the response are marked as the prompt's; the last of them, at −1, predicts the first
    response token. The colour scale is logarithmic and the same for every response of a result. Beyond `max_tokens` tokens or 64 layers,
    neighbours share a cell, which shows the largest value.

    Args:
        result: Result of `psr.compare`.
        triplet: Index of the response.
        methods: Replacements to show, in this order; all by default.
        max_tokens: Most rows.

    Returns:
        A figure with one heatmap per panel; `customdata` holds magnitudes in the activation's units, `z` their log10.

    Raises:
        InputError: not a `Comparison`, no such response or replacement, or `max_tokens` below 1.

    Example:
        >>> figure = psr.plots.magnitude_heatmap(comparison)
        >>> [trace.name for trace in figure.data]
        ['prompt', 'A-PSR', 'CAA']
    """
    check_most(max_tokens, "max_tokens")
    rows = rows_of(result, triplet)
    traces = traces_of(result, methods)
    panels = {PROMPT: result.magnitude[rows]} | {name: trace.magnitude[rows] for name, trace in traces.items()}
    tall, wide = math.ceil(len(rows) / max_tokens), math.ceil(len(result.layers) / MAX_LAYERS)
    labels, layers = token_labels(result, rows, tall), layer_labels(result.layers, wide)
    low, high = colour_range(result)
    titles = [_panel_title(name) for name in panels]
    above = _TITLE_LINE * (1 + max(title.count("<br>") for title in titles))
    lines = math.ceil(len(panels) / _PANELS)
    columns = math.ceil(len(panels) / lines)
    panel, between = max(LEAST, len(labels) * ROW), BOTTOM + above
    plot = lines * panel + (lines - 1) * between
    figure = make_subplots(
        lines,
        columns,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=between / plot if lines > 1 else 0,
        subplot_titles=titles,
    )
    for index, (name, magnitude) in enumerate(panels.items()):
        line, column = divmod(index, columns)
        figure.add_trace(magnitude_panel(name, pooled(magnitude, tall, wide), layers, low), row=line + 1, col=column + 1)
    token_axis(figure, labels)
    figure.update_layout(coloraxis=magnitude_axis(low, high, (above + 64) / plot))
    note = grouping_note(len(rows), len(result.layers), tall, wide)
    titled(figure, "Magnitude of steering by token and layer", plot=plot, top=TOP + above - _TITLE_LINE, bottom=BOTTOM, note=note)
    return figure


def colour_range(result: Comparison) -> tuple[float, float]:
    """Ends of the colour scale in log10, the same for every response of a result.

    The lower end is the power of ten below the first percentile of the prompt's magnitudes. Smaller magnitudes have its colour, also the
    exact zeros before a replacement's first layer.
    """
    return colour_ends(torch.stack([result.magnitude, *(trace.magnitude for trace in result.methods.values())]), result.magnitude)


def colour_ends(every: Float[Tensor, "..."], reference: Float[Tensor, "..."]) -> tuple[float, float]:
    """Ends of the colour scale in log10 for any magnitudes; the lower end is set by those of `reference`."""
    every = every[every.isfinite() & (every > 0)]
    if not len(every):
        return 0.0, 1.0
    pushed = reference[reference > 0].sort().values
    high = math.log10(float(every.max()))
    weakest = float(pushed[len(pushed) // 100]) if len(pushed) else 10 ** (high - 2)
    low = max(math.floor(math.log10(weakest)), math.ceil(high - _DECADES))
    return (float(low), high) if high - low >= 0.5 else (high - 1, high)


def magnitude_panel(name: str, magnitude: Float[Tensor, "row column"], layers: list[str], low: float) -> go.Heatmap:
    """One panel, on the common colour axis."""
    return go.Heatmap(
        name=name,
        z=magnitude.clamp(min=10.0**low).log10().numpy(),
        customdata=magnitude.numpy(),
        x=layers,
        y=list(range(len(magnitude))),
        coloraxis="coloraxis",
        xgap=1 if len(layers) <= _NARROW else 0,
        ygap=1,
        hovertemplate=f"%{{y}}<br>layer %{{x}}<br>magnitude %{{customdata:.3g}}<extra>{escaped(name)}</extra>",
    )


def token_axis(figure: go.Figure, labels: list[str]) -> None:
    """Axes with layers across and tokens down, one row per token."""
    figure.update_xaxes(
        type="category", title_text="layer", title_standoff=4, showgrid=False, autotickangles=[0, 90], tickfont_size=SMALL
    )
    # Rows are numbers, since a repeated token would otherwise share its row.
    every = math.ceil(len(labels) / _LABELS)
    rows: list[int] | list[str] = list(range(len(labels)))
    if every > 1:
        # Hundreds of labels and gaps slow the browser down. If labels are unique, rows without one still show it on hover.
        rows = labels if len(set(labels)) == len(labels) else rows
        figure.update_traces(y=rows, ygap=0)
        figure.update_yaxes(type="category" if rows is labels else "linear")
    figure.update_yaxes(
        tickmode="array",
        tickvals=rows[::every],
        ticktext=labels[::every],
        range=[len(labels) - 0.5, -0.5],
        showgrid=False,
        automargin=True,
    )
    figure.update_annotations(yshift=2, font_size=12)


def _panel_title(name: str) -> str:
    """A name in up to three short lines, so that neighbouring titles do not overlap in a narrow window."""
    lines = textwrap.wrap(name, 9, max_lines=3, placeholder="…", break_long_words=False) or [name]
    return "<br>".join(escaped(shortened(line, 9)) for line in lines)


def magnitude_axis(low: float, high: float, above: float) -> dict[str, object]:
    """The colour axis of magnitudes between two powers of ten, with its bar `above` the plot, in shares of the plot's height."""
    ticks = log_ticks(low, high)
    names = [real_units(tick) for tick in ticks]
    if ticks[0] - low < 1e-6:
        names[0] = f"≤ {names[0]}"
    return {
        "cmin": low,
        "cmax": high,
        "colorscale": SEQUENTIAL,
        "colorbar": colour_bar("‖Δ‖ (activation units)", above, tickvals=ticks, ticktext=names),
    }


def pooled(magnitude: Float[Tensor, "token layer"], tall: int, wide: int) -> Float[Tensor, "row column"]:
    """Largest value of each group of `tall` tokens and `wide` layers; the last groups may be smaller."""
    if tall == wide == 1:
        return magnitude
    pooled: Tensor = torch.nn.functional.max_pool2d(magnitude[None], (tall, wide), ceil_mode=True)[0]
    return pooled


def token_labels(result: Tokened, rows: Int[Tensor, " token"], tall: int) -> list[str]:
    """One label per row of `tall` tokens."""
    labels = row_labels(result, rows[::tall])
    if tall == 1:
        return labels
    positions = result.tokens.position[rows].tolist()
    return [f"{label} … {signed(positions[min(at * tall + tall, len(positions)) - 1])}" for at, label in enumerate(labels)]


def layer_labels(layers: Sequence[int], wide: int) -> list[str]:
    """One label per column of `wide` layers."""
    groups = [layers[at : at + wide] for at in range(0, len(layers), wide)]
    return [ranges(group) for group in groups]


def grouping_note(tokens: int, layers: int, tall: int, wide: int) -> str:
    """A note for cells that hold several tokens or layers."""
    groups = [f"{size} {word}" for size, word in ((tall, "tokens"), (wide, "layers")) if size > 1]
    if not groups:
        return ""
    return f"Each cell shows the largest of {' × '.join(groups)}, out of {tokens:,} tokens and {layers} layers."
