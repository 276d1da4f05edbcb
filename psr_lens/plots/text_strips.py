"""A response as text, coloured by how hard each token is pushed: for the prompt, and for each replacement with its coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Unpack

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison, MethodTrace
from psr_lens.evaluation.methods import PROMPT
from psr_lens.models.hook_points import point_of
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.look import Look, draws
from psr_lens.plots.scales import Scale, View, chosen_scale, hover_of, of_comparison, views_of
from psr_lens.plots.sliders_and_buttons import MAX_STEPS, add_buttons, steps_of, switched
from psr_lens.plots.style import (
    GRID,
    INK,
    LETTERED,
    MONO,
    MUTED,
    PALETTE,
    colour_bar,
    escaped,
    label_room,
    method_styles,
    round_below,
    titled,
)
from psr_lens.plots.text_layout import EDGE, FONT_SIZE, STRIP, PlacedToken, placed_tokens, strip_axes, strip_tops
from psr_lens.plots.token_rows import Word, rows_and_words, signed, traces_of, word_note

MAX_TOKENS: Final = 300
"""Most tokens drawn; of a longer response, the first ones."""

_LANE: Final = 1.2
"""Height of what is below a strip for each hook point, in strip heights."""
_LONGEST: Final = 1.0
"""Height of the longest bars in it, in strip heights."""
_BAR: Final = 1.4
"""Largest width of a bar, in characters; two bars fit under a token of any length."""


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

    If a replacement acts at the layer, each token of its strip stands over two bars: what the replacement adds, `α·‖λ(A)·z‖`, and what
    the prompt calls for, the part of (prompted activation − arriving activation) along the replacement's directions, in the same units
    and to the same scale. Where the prompt pushes against the direction, the bar points up; a ReLU cannot follow.

    A slider selects among the layers, and buttons switch between the scales of `magnitude_heatmap`. Colours are the same for every
    response and layer of a result.

    Args:
        result: Result of `psr.compare`.
        triplet: Index of the response.
        layer: The only layer to show; by default a slider selects among all layers that were compared, and begins at the last of those
            at which most replacements act.
        methods: Replacements to show, in this order; all by default.
        scale: The scale shown first; by default `absolute` up to 12 layers, `layer` beyond.
        word: What is coloured: the token that was `read`, or the next one, which is `predicted` from the activation.
        max_layers: Most layers of the slider; of more, evenly spaced ones are offered.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure that begins with one bar trace per method (for each layer), with one bar per token; `customdata` holds the numbers of all
        scales, magnitudes in the activation's units first, then those of the bars below. These are two more traces for each hook point.

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
    traces = traces_of(result, methods)
    views = views_of(of_comparison(result, methods), of_comparison(result, None))
    shown = chosen_scale(scale, views, len(result.layers))
    rows, words = rows_and_words(result, triplet, word)
    notes = [word_note(word)]
    acting = [sum(number in trace.site_layers for trace in traces.values()) for number in result.layers]
    if len(rows) > MAX_TOKENS:
        notes.append(f"The first {MAX_TOKENS:,} of {len(rows):,} tokens.")
    first = max(range(len(acting)), key=lambda column: (acting[column], column)) if layer is None else result.layers.index(layer)
    columns = steps_of(len(acting), first, max_layers) if layer is None else [first]
    if any(acting[column] for column in columns):
        notes.append("Bars: left, the coefficient that the replacement adds; right, the one that the prompt calls for.")
    if layer is None and len(columns) < len(acting):
        notes.append(f"{len(columns)} of {len(acting)} layers, evenly spaced.")
    rows, words = rows[:MAX_TOKENS], words[:MAX_TOKENS]
    placed = placed_tokens(result, words)
    positions = result.tokens.position[words].tolist()
    hover = [f"{'prompt ' if position < 0 else ''}{signed(position)}" for position in positions]
    colors = {name: style.color for name, style in method_styles(result).items()}
    labels = {name: f'<span style="color:{colors[name]}">■</span> {escaped(shortened(name, 12))}' for name in (PROMPT, *traces)}
    figures = []
    for column in columns:
        number = result.layers[column]
        values = {scale: {name: panel[rows, column] for name, panel in view.panels.items()} for scale, view in views.items()}
        coefficients = {name: _coefficients(traces.get(name), number, rows) for name in labels}
        tops = strip_tops([_LANE * len(each) for each in coefficients.values()])
        beside = {top + 0.5: label for top, label in zip(tops, labels.values(), strict=False)}
        figure = _strips(values, views, shown, coefficients, tops, placed)
        figure.update_traces(meta=number, hovertext=hover)
        for (name, found), top in zip(coefficients.items(), tops, strict=False):
            for site, (which, pair) in enumerate(found.items()):
                places = [token.line * tops[-1] + top + 1 + site * _LANE for token in placed]
                method = f"{which}{escaped(shortened(name, 18))}"
                mark = _add_bars(figure, pair, placed, places, (method, colors[name]))
                beside |= {top + 1 + site * _LANE + at: text for at, text in mark.items()}
        strip_axes(figure, beside, placed[-1].line + 1, tops[-1])
        plot = round((placed[-1].line + 1) * tops[-1] * STRIP)
        title = f"Magnitude after layer {number}, token by token"
        titled(figure, title, plot=plot, top=112, bottom=10, left=label_room(labels.values()), note=" ".join(notes))
        figure.update_layout(coloraxis={"colorbar": colour_bar("", 66 / plot)})
        figure.update_layout(coloraxis_colorbar={"lenmode": "pixels", "len": 280, "x": 0, "xanchor": "left"})
        axes = {scale: view.axis(LETTERED) for scale, view in views.items()}
        figure.update_layout(axes[shown])
        drawn = {scale: {"marker.color": [_drawn(view, each) for each in values[scale].values()]} for scale, view in views.items()}
        add_buttons(figure, drawn, axes, shown)
        figures.append(figure)
    return switched(figures, [str(result.layers[column]) for column in columns], "layer", columns.index(first))


def _coefficients(trace: MethodTrace | None, layer: int, rows: Int[Tensor, " row"]) -> dict[str, Float[Tensor, "row 2"]]:
    """What a replacement adds at its hook points of a layer, and what the prompt calls for; the prompt itself has none.

    Hook points go by what stands before a method's name: their own, where a layer has several.
    """
    if trace is None:
        return {}
    sites = [site for site, at in enumerate(trace.site_layers) if at == layer]
    pairs = torch.stack([trace.coefficient, trace.projection], dim=2)[rows]
    return {f"{point_of(trace.hooks[site])}: " if len(sites) > 1 else "": pairs[:, site] for site in sites}


def _drawn(view: View, values: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
    """What colours the bars: an undefined number has the colour of no push, since Plotly would draw its bar in dark grey."""
    found: Tensor = view.drawn(torch.where(values.isnan(), 0.0, values))
    return found


def _strips(
    values: Mapping[Scale, Mapping[str, Float[Tensor, " row"]]],
    views: Mapping[Scale, View],
    shown: Scale,
    coefficients: Mapping[str, Mapping[str, Float[Tensor, "row 2"]]],
    tops: Sequence[float],
    placed: Sequence[PlacedToken],
) -> go.Figure:
    """The strips of one layer."""
    figure = go.Figure()
    for (name, found), top in zip(coefficients.items(), tops, strict=False):
        numbers = [*(each[name] for each in values.values()), *(column for pair in found.values() for column in pair.T)]
        lines = [
            f"{which}adds %{{customdata[{at}]:.3g}}, prompt calls for %{{customdata[{at + 1}]:.3g}}"
            for which, at in zip(found, range(len(values), len(numbers), 2), strict=True)
        ]
        figure.add_bar(
            name=escaped(name),
            orientation="h",
            base=np.array([token.left + EDGE / 2 for token in placed], dtype=np.float32),
            x=np.array([token.width - EDGE for token in placed], dtype=np.float32),
            y=np.array([token.line * tops[-1] + top + 0.5 for token in placed], dtype=np.float32),
            width=0.94,
            marker={"color": _drawn(views[shown], values[shown][name]).numpy(), "coloraxis": "coloraxis", "line": {"width": 0}},
            customdata=torch.stack(numbers, dim=1).float().numpy(),
            text=[escaped(token.text) for token in placed],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            constraintext="none",
            textfont={"family": MONO, "size": FONT_SIZE, "color": INK},
            hovertemplate="<br>".join(["%{text} (%{hovertext})", "layer %{meta}", hover_of(views), *lines]),
        )
    return figure


def _add_bars(
    figure: go.Figure,
    numbers: Float[Tensor, "row 2"],
    placed: Sequence[PlacedToken],
    tops: Sequence[float],
    method: tuple[str, str],
) -> dict[float, str]:
    """Two bars under each token, downwards unless the number is below 0, over lines at 0 and at a round number.

    Returns:
        What labels the line at the round number, by its distance from `tops`.
    """
    above, below = max(0.0, -float(numbers.min())), max(0.0, float(numbers.max()))
    unit = _LONGEST / ((above + below) or 1.0)
    mark = 0.0 if above == below == 0 else round_below(below) if below >= above else -round_below(above)
    zeros = np.array(tops) + (_LANE - _LONGEST) / 2 + above * unit
    ends = {
        zero: token.left + token.width for zero, token in zip(zeros.tolist(), placed, strict=True)
    }  # of the last token of a line
    figure.add_scatter(
        x=np.array([(0, end, np.nan) * 2 for end in ends.values()], dtype=np.float32).flatten(),
        y=np.array([(zero,) * 3 + (zero + mark * unit,) * 3 for zero in ends], dtype=np.float32).flatten(),
        mode="lines",
        line={"color": GRID, "width": 1},
        hoverinfo="skip",
    )
    widths = np.array([min(_BAR, 0.46 * token.width) for token in placed], dtype=np.float32)
    name, color = method
    for column, side, called, shade in ((0, -0.5, f"{name} adds", color), (1, 0.5, "the prompt calls for", PALETTE["prompt"])):
        figure.add_bar(
            name=called,
            x=np.array([token.center for token in placed], dtype=np.float32) + side * widths,
            y=(numbers[:, column] * unit).float().numpy(),
            base=zeros.astype(np.float32),
            width=widths,
            marker={"color": shade, "line": {"width": 0}},
            customdata=numbers[:, column].float().numpy(),
            hovertemplate=f"{called} %{{customdata:.3g}}<extra></extra>",
        )
    label = f'<span style="color:{MUTED}">{mark:g}</span>'.replace("-", "−")
    return {float(zeros[0]) - tops[0] + mark * unit: label} if mark else {}
