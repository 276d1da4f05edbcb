"""Strength of the prompt and of each replacement, tokens by layers."""

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

from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PROMPT
from psr_lens.plots.style import SEQUENTIAL, SMALL, escaped, log_ticks, real_units, titled
from psr_lens.plots.tokens import Tokened, row_labels, rows_of, shortened, signed, traces_of

MAX_LAYERS: Final = 64
"""More layers than this are drawn in groups."""

ROW: Final = 17
"""Height of a token's row in pixels: one line of text."""
LEAST: Final = 72
"""Least height of a panel."""
TOP: Final = 128
"""Title and colour bar."""
_TITLE_LINE: Final = 15
BOTTOM: Final = 52
"""Layers and the axis's name."""
_NARROW: Final = 12
"""More layers than this touch each other, or the gaps would take up the cells of a narrow window."""
_LABELS: Final = 100
"""Most rows that are labelled; of more, every n-th is."""
_PANELS: Final = 5
_DECADES: Final = 4.0
"""Most powers of ten that the colours span."""


def magnitude_heatmap(
    result: Comparison, triplet: int = 0, methods: Sequence[str] | None = None, *, max_tokens: int = 400
) -> go.Figure:
    """Where the prompt steers one response and where its replacements do: ‖Δ‖ after each layer, one panel each, one colour scale.

    Tokens run down in reading order, each in a row of its own; those before the response are marked as the prompt's, and the last of
    them, at −1, predicts the first response token. Colours are on a log scale, the same for every response of a result. Of more than
    `max_tokens` tokens, or 64 layers, neighbours share a cell, which shows their largest value.

    Args:
        result: What `compare` returned.
        triplet: Which response.
        methods: Replacements to show, in this order; all by default.
        max_tokens: Most rows.

    Returns:
        A figure with one heatmap a panel; `customdata` holds magnitudes in the activation's units, `z` their log10.

    Raises:
        InputError: no such response or replacement, or no rows are asked for.
    """
    if max_tokens < 1:
        raise InputError("max_tokens", max_tokens, "1 or more")
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
    for place, (name, magnitude) in enumerate(panels.items()):
        line, column = divmod(place, columns)
        figure.add_trace(magnitude_panel(name, pooled(magnitude, tall, wide), layers, low), row=line + 1, col=column + 1)
    token_axis(figure, labels)
    figure.update_layout(coloraxis=magnitude_axis(low, high, (above + 64) / plot))
    note = grouping_note(len(rows), len(result.layers), tall, wide)
    titled(figure, "Strength of steering by token and layer", plot=plot, top=TOP + above - _TITLE_LINE, bottom=BOTTOM, note=note)
    return figure


def colour_range(result: Comparison) -> tuple[float, float]:
    """Ends of the colour scale as powers of ten (log10), the same for every response of a result.

    The lower end is the power of ten under all but the weakest hundredth of the prompt's magnitudes; all that is weaker, and the
    exact 0 before a replacement's first layer, has its colour.
    """
    return colour_ends(torch.stack([result.magnitude, *(trace.magnitude for trace in result.methods.values())]), result.magnitude)


def colour_ends(every: Float[Tensor, "..."], reference: Float[Tensor, "..."]) -> tuple[float, float]:
    """The same for any magnitudes, the lower end by the magnitudes of reference."""
    every = every[every.isfinite() & (every > 0)]
    if not len(every):
        return 0.0, 1.0
    pushed = reference[reference > 0].sort().values
    high = math.log10(float(every.max()))
    weakest = float(pushed[len(pushed) // 100]) if len(pushed) else 10 ** (high - 2)
    low = max(math.floor(math.log10(weakest)), math.ceil(high - _DECADES))
    return (float(low), high) if high - low >= 0.5 else (high - 1, high)


def magnitude_panel(name: str, magnitude: Float[Tensor, "row column"], layers: list[str], low: float) -> go.Heatmap:
    """One panel on the common colour axis."""
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
    """Layers across and tokens down, every token in a row of its own."""
    figure.update_xaxes(
        type="category", title_text="layer", title_standoff=4, showgrid=False, autotickangles=[0, 90], tickfont_size=SMALL
    )
    # Rows are numbers and not the tokens' texts, or the same word twice would be one row.
    every = math.ceil(len(labels) / _LABELS)
    rows: list[int] | list[str] = list(range(len(labels)))
    if every > 1:
        # A browser takes seconds over hundreds of labels and gaps. Rows without one are still named on hover, if names tell them apart.
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
    """A name in up to three short lines, so that titles of neighbouring panels do not meet in a narrow window."""
    lines = textwrap.wrap(name, 9, max_lines=3, placeholder="…", break_long_words=False) or [name]
    return "<br>".join(escaped(shortened(line, 9)) for line in lines)


def magnitude_axis(low: float, high: float, above: float) -> dict[str, object]:
    """The colour axis of magnitudes, its bar `above` the plot (in shares of the plot's height); its ends are powers of ten."""
    ticks = log_ticks(low, high)
    names = [real_units(tick) for tick in ticks]
    if ticks[0] - low < 1e-6:
        names[0] = f"≤ {names[0]}"
    return {
        "cmin": low,
        "cmax": high,
        "colorscale": SEQUENTIAL,
        "colorbar": {
            "orientation": "h",
            "thickness": 10,
            "len": 0.96,
            "x": 0.5,
            "xanchor": "center",
            # Not "bottom": above the plot, that would make Plotly push the figure's own titles off their places.
            "y": 1 + above,
            "yanchor": "top",
            "title": {"text": "‖Δ‖ (activation units)", "side": "top", "font": {"size": 12}},
            "tickvals": ticks,
            "ticktext": names,
            "tickfont": {"size": SMALL},
            "outlinewidth": 0.5,
        },
    }


def pooled(magnitude: Float[Tensor, "token layer"], tall: int, wide: int) -> Float[Tensor, "row column"]:
    """Largest value of each group of `tall` tokens and `wide` layers; the last group may be smaller."""
    if tall == wide == 1:
        return magnitude
    pooled: Tensor = torch.nn.functional.max_pool2d(magnitude[None], (tall, wide), ceil_mode=True)[0]
    return pooled


def token_labels(result: Tokened, rows: Int[Tensor, " token"], tall: int) -> list[str]:
    """A label a row of `tall` tokens each."""
    labels = row_labels(result, rows[::tall])
    if tall == 1:
        return labels
    places = result.tokens.position[rows].tolist()
    return [f"{label} … {signed(places[min(at * tall + tall, len(places)) - 1])}" for at, label in enumerate(labels)]


def layer_labels(layers: Sequence[int], wide: int) -> list[str]:
    """A label a column of `wide` layers each."""
    groups = [layers[at : at + wide] for at in range(0, len(layers), wide)]
    return [str(group[0]) if len(group) == 1 else f"{group[0]}–{group[-1]}" for group in groups]


def grouping_note(tokens: int, layers: int, tall: int, wide: int) -> str:
    """What a reader must know where neighbours share a cell."""
    groups = [f"{size} {word}" for size, word in ((tall, "tokens"), (wide, "layers")) if size > 1]
    if not groups:
        return ""
    return f"{tokens:,} tokens and {layers} layers are too many to draw one by one: a cell is the largest of {' × '.join(groups)}."
