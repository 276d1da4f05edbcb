"""A response as text, coloured by how hard each token is pushed: once for the prompt, and once for each replacement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Unpack

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.look import Look, draws
from psr_lens.plots.scales import Scale, View, chosen_scale, hover_of, of_comparison, views_of
from psr_lens.plots.sliders_and_buttons import MAX_STEPS, add_buttons, steps_of, switched
from psr_lens.plots.style import INK, LETTERED, MONO, colour_bar, escaped, label_room, method_styles, titled
from psr_lens.plots.text_layout import EDGE, FONT_SIZE, STRIP, PlacedToken, placed_tokens, strip_axes, strip_pitch
from psr_lens.plots.token_rows import Word, rows_and_words, signed, word_note

MAX_TOKENS: Final = 300
"""Most tokens drawn; of a longer response, the first ones."""


@draws
def magnitude_strips(
    result: Comparison,
    triplet: int = 0,
    layer: int | None = None,
    methods: Sequence[str] | None = None,
    *,
    scale: Scale | None = None,
    word: Word = "read",
    max_layers: int = MAX_STEPS,
    **look: Unpack[Look],
) -> go.Figure:
    """One response as text, in one strip for the prompt and one for each replacement, coloured by how hard each token is pushed.

    A slider selects among the layers, and buttons switch between the scales of `magnitude_heatmap`. Colours are the same for every
    response and layer of a result.

    Args:
        result: Result of `psr.compare`.
        triplet: Index of the response.
        layer: The only layer to show; by default a slider selects among all layers that were compared, and begins at the last.
        methods: Replacements to show, in this order; all by default.
        scale: The scale shown first; by default `absolute` up to 12 layers, `layer` beyond.
        word: What is coloured: the token that was `read`, or the next one, which is `predicted` from the activation.
        max_layers: Most layers of the slider; of more, evenly spaced ones are offered.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one bar trace per method (for each layer) and one bar per token; `customdata` holds the numbers of all scales,
        magnitudes in the activation's units first.

    Raises:
        InputError: not a `Comparison`, no such response, replacement, layer, scale or word, or `max_layers` below 1.

    Example:
        >>> figure = psr.plots.magnitude_strips(comparison, layer=3)
        >>> figure.layout.title.text
        'Magnitude after layer 3, token by token'
    """
    check_most(max_layers, "max_layers")
    if layer is not None and layer not in result.layers:
        raise InputError("layer", repr(layer), f"a layer that was compared ({', '.join(map(str, result.layers))})")
    views = views_of(of_comparison(result, methods), of_comparison(result, None))
    shown = chosen_scale(scale, views, len(result.layers))
    rows, words = rows_and_words(result, triplet, word)
    notes = [word_note(word)]
    if len(rows) > MAX_TOKENS:
        notes.append(f"The first {MAX_TOKENS:,} of {len(rows):,} tokens.")
    columns = steps_of(len(result.layers), len(result.layers) - 1, max_layers) if layer is None else [result.layers.index(layer)]
    if layer is None and len(columns) < len(result.layers):
        notes.append(f"{len(columns)} of {len(result.layers)} layers, evenly spaced.")
    rows, words = rows[:MAX_TOKENS], words[:MAX_TOKENS]
    placed = placed_tokens(result, words)
    positions = result.tokens.position[words].tolist()
    hover = [f"{'prompt ' if position < 0 else ''}{signed(position)}" for position in positions]
    figures = []
    for column in columns:
        values = {scale: {name: panel[rows, column] for name, panel in view.panels.items()} for scale, view in views.items()}
        figure, names = _strips(result, values, views, shown, placed, hover)
        number = result.layers[column]
        figure.update_traces(
            hovertemplate=f"%{{text}} (%{{hovertext}})<br>layer {number}<br>{hover_of(views)}", selector={"type": "bar"}
        )
        plot = round((placed[-1].line + 1) * strip_pitch(len(values[shown])) * STRIP)
        titled(
            figure,
            f"Magnitude after layer {number}, token by token",
            plot=plot,
            top=112,
            bottom=10,
            left=label_room(names),
            note=" ".join(notes),
        )
        figure.update_layout(coloraxis={"colorbar": colour_bar("", 66 / plot)})
        figure.update_layout(coloraxis_colorbar={"lenmode": "pixels", "len": 280, "x": 0, "xanchor": "left"})
        axes = {scale: view.axis(LETTERED) for scale, view in views.items()}
        figure.update_layout(axes[shown])
        drawn = {scale: {"marker.color": [_drawn(view, each) for each in values[scale].values()]} for scale, view in views.items()}
        add_buttons(figure, drawn, axes, shown)
        figures.append(figure)
    return switched(figures, [str(result.layers[column]) for column in columns], "layer", len(figures) - 1)


def _drawn(view: View, values: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """What colours the bars: an undefined number has the colour of no push, since Plotly would draw its bar in dark grey."""
    found: Tensor = view.drawn(torch.where(values.isnan(), 0.0, values))
    return found


def _strips(
    result: Comparison,
    values: Mapping[Scale, Mapping[str, Float[Tensor, " row"]]],
    views: Mapping[Scale, View],
    shown: Scale,
    placed: Sequence[PlacedToken],
    hover: Sequence[str],
) -> tuple[go.Figure, list[str]]:
    """The strips of one layer, without titles and colours, and the labels beside them."""
    names, pitch = list(values[shown]), strip_pitch(len(values[shown]))
    figure = go.Figure()
    for order, name in enumerate(names):
        figure.add_bar(
            name=escaped(name),
            orientation="h",
            base=np.array([token.left + EDGE / 2 for token in placed], dtype=np.float32),
            x=np.array([token.width - EDGE for token in placed], dtype=np.float32),
            y=np.array([token.line * pitch + order + 0.5 for token in placed], dtype=np.float32),
            width=0.94,
            marker={"color": _drawn(views[shown], values[shown][name]).numpy(), "coloraxis": "coloraxis", "line": {"width": 0}},
            customdata=torch.stack([each[name] for each in values.values()], dim=1).float().numpy(),
            text=[escaped(token.text) for token in placed],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="none",
            textfont={"family": MONO, "size": FONT_SIZE, "color": INK},
            hovertext=list(hover),
        )
    lines = placed[-1].line + 1
    styles = method_styles(result)
    labels = [f'<span style="color:{styles[name].color}">■</span> {escaped(shortened(name, 12))}' for name in names]
    strip_axes(figure, labels, lines)
    return figure, labels
