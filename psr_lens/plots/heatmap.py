"""How hard the prompt and each replacement push, by token and layer, and the parts that other heatmaps share."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Final, Unpack

import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from plotly.subplots import make_subplots
from torch import Tensor

from psr_lens._utils.sequences import ranges
from psr_lens._utils.short_text import shortened
from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.look import Look, draws
from psr_lens.plots.scales import Scale, View, chosen_scale, hover_of, of_comparison, views_of
from psr_lens.plots.sliders_and_buttons import add_buttons
from psr_lens.plots.style import SMALL, colour_bar, escaped, label_room, titled
from psr_lens.plots.token_rows import Tokened, Word, row_labels, rows_and_words, signed, word_note

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
_LAYER_LABELS: Final = 12
"""Most layers that are labelled, in all panels together, where there are more than `_NARROW`; in each panel up to three are."""
_LABELS: Final = 100
"""Most rows that are all labelled; of more rows, every n-th is."""
_PANELS: Final = 5
_ROWS_TITLE: Final = 24
"""Width of the vertical title of rows, in pixels."""


@draws
def magnitude_heatmap(
    result: Comparison,
    triplet: int = 0,
    methods: Sequence[str] | None = None,
    *,
    scale: Scale | None = None,
    word: Word = "read",
    max_tokens: int = 400,
    **look: Unpack[Look],
) -> go.Figure:
    """How hard each token is pushed after each layer of one response, by the prompt and by each replacement: one panel each.

    Rows are tokens in reading order. Tokens before the response are marked as the prompt's; the last of them, at −1, predicts the first
    response token. Buttons switch between scales:

    - `absolute`: ‖Δ‖ in the activation's units, which grows with depth;
    - `layer`: ‖Δ‖ over the median of the prompt's ‖Δ‖ at that layer, which shows which tokens are pushed equally at every layer;
    - `relative`: ‖Δ‖ / ‖A‖, the change relative to the activation that is changed;
    - `projection`: Δ along the mean of the prompt's Δ at that layer, in lengths of that mean: the coefficient of a token on the
      difference in means. It is 1 on average over the prompt's tokens, and 1 everywhere for a constant;
    - `cosine`: the cosine of Δ with that mean.

    Medians and means are over all tokens of the result, and colours are the same for every response of it. The first three scales are
    logarithmic. Beyond `max_tokens` tokens or 64 layers, neighbours share a cell, which shows the value furthest from 0.

    Args:
        result: Result of `psr.compare`.
        triplet: Index of the response.
        methods: Replacements to show, in this order; all by default.
        scale: The scale shown first; by default `absolute` up to 12 layers, `layer` beyond.
        word: What labels a row: the token that was `read`, or the next one, which is `predicted` from the activation.
        max_tokens: Most rows.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one heatmap per panel. Its `z` is what is drawn, log10 on a logarithmic scale; `customdata` holds the numbers of all
        scales in the order above, magnitudes in the activation's units first.

    Raises:
        InputError: not a `Comparison`, no such response, replacement, scale or word, or `max_tokens` below 1.

    Example:
        >>> figure = psr.plots.magnitude_heatmap(comparison, scale="cosine")
        >>> [trace.name for trace in figure.data]
        ['prompt', 'A-PSR', 'CAA']
    """
    check_most(max_tokens, "max_tokens")
    rows, words = rows_and_words(result, triplet, word)
    pushes = of_comparison(result, methods)
    views = views_of(pushes, of_comparison(result, None))
    shown = chosen_scale(scale, views, len(result.layers))
    tall, wide = math.ceil(len(rows) / max_tokens), math.ceil(len(result.layers) / MAX_LAYERS)
    labels, layers = token_labels(result, words, tall), layer_labels(result.layers, wide)
    titles = [_panel_title(name) for name in pushes]
    above = _TITLE_LINE * (1 + max(title.count("<br>") for title in titles))
    lines = math.ceil(len(pushes) / _PANELS)
    columns = math.ceil(len(pushes) / lines)
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
    cells = {scale: {name: view.pooled(name, rows, tall, wide) for name in pushes} for scale, view in views.items()}
    for index, name in enumerate(pushes):
        line, column = divmod(index, columns)
        values = {scale: cells[scale][name] for scale in views}
        figure.add_trace(push_panel(name, values, views, shown, layers), row=line + 1, col=column + 1)
    token_axis(figure, labels)
    note = " ".join(part for part in (word_note(word), grouping_note(len(rows), len(result.layers), tall, wide)) if part)
    titled(
        figure,
        "Magnitude of steering by token and layer",
        plot=plot,
        top=TOP + above - _TITLE_LINE,
        bottom=BOTTOM,
        left=label_room(labels),
        note=note,
    )
    push_colours(figure, cells, views, shown, (above + 64) / plot)
    return figure


def push_panel(
    name: str,
    values: Mapping[Scale, Float[Tensor, "row column"]],
    views: Mapping[Scale, View],
    shown: Scale,
    layers: list[str],
) -> go.Heatmap:
    """One panel on the common colour axis, from its numbers on every scale."""
    return go.Heatmap(
        name=name,
        z=views[shown].drawn(values[shown]).numpy(),
        customdata=torch.stack(list(values.values()), dim=2).float().numpy(),
        x=layers,
        y=list(range(len(values[shown]))),
        coloraxis="coloraxis",
        xgap=1 if len(layers) <= _NARROW else 0,
        ygap=1,
        hoverongaps=False,
        hovertemplate=f"%{{y}}<br>layer %{{x}}<br>{hover_of(views)}<extra>{escaped(name)}</extra>",
    )


def push_colours(
    figure: go.Figure,
    cells: Mapping[Scale, Mapping[str, Float[Tensor, "row column"]]],
    views: Mapping[Scale, View],
    shown: Scale,
    above: float,
) -> None:
    """The colour axis of panels, with its bar `above` the plot, in shares of the plot's height, and a button for every scale."""
    figure.update_layout(coloraxis={"colorbar": colour_bar("", above)})
    figure.update_layout(views[shown].axis())
    drawn = {scale: {"z": [view.drawn(values) for values in cells[scale].values()]} for scale, view in views.items()}
    add_buttons(figure, drawn, {scale: view.axis() for scale, view in views.items()}, shown)


def token_axis(figure: go.Figure, labels: list[str]) -> None:
    """Axes with layers across and tokens down, one row per token."""
    figure.update_xaxes(
        type="category", title_text="layer", title_standoff=4, showgrid=False, autotickangles=[0, 90], tickfont_size=SMALL
    )
    layers = list(dict.fromkeys(layer for panel in figure.data for layer in panel.x))
    if len(layers) > _NARROW:  # whose labels would stand upright in narrow panels if there were as many as fit
        labelled = max(3, _LAYER_LABELS // len({panel.xaxis for panel in figure.data}))
        least = math.ceil(len(layers) / labelled)
        step = next((step for step in (2, 5, 10, 20, 50) if step >= least), least)
        figure.update_xaxes(tickmode="array", tickvals=layers[::step])
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


def rows_title(figure: go.Figure, title: str, labels: list[str]) -> int:
    """Say beside the labels of the rows what they are, if it is said, and return the margin that both need, in pixels."""
    if not title:
        return label_room(labels)
    figure.update_yaxes(title_text=title, title_standoff=6)
    return label_room(labels) + _ROWS_TITLE


def _panel_title(name: str) -> str:
    """A name in up to three short lines, so that neighbouring titles do not overlap in a narrow window."""
    lines = textwrap.wrap(name, 9, max_lines=3, placeholder="…", break_long_words=False) or [name]
    return "<br>".join(escaped(shortened(line, 9)) for line in lines)


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
    return f"Each cell shows the value furthest from 0 of {' × '.join(groups)}, out of {tokens:,} tokens and {layers} layers."
