"""Where in a block the prompt acts: attention, MLP and residual stream, by token and layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Unpack

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from psr_lens.activations.capture import Captured
from psr_lens.errors import InputError
from psr_lens.models.hook_points import KINDS, layer_of
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.heatmap import (
    BOTTOM,
    LEAST,
    MAX_LAYERS,
    ROW,
    TOP,
    grouping_note,
    layer_labels,
    push_colours,
    push_panel,
    token_axis,
    token_labels,
)
from psr_lens.plots.look import Look, draws
from psr_lens.plots.scales import Push, Scale, chosen_scale, views_of
from psr_lens.plots.style import escaped, label_room, titled
from psr_lens.plots.token_rows import Word, rows_and_words, word_note

NAMES: Final = {
    "attn_out": "attention",
    "mlp_out": "MLP",
    "resid_post": "residual",
    "resid_mid": "residual, mid",
    "resid_pre": "residual, pre",
}
"""Names of kinds of hook points in figures; other kinds keep TransformerLens's name."""


@draws
def magnitude_by_kind(
    captured: Captured,
    triplet: int = 0,
    kinds: Sequence[str] = ("attn_out", "mlp_out", "resid_post"),
    *,
    scale: Scale | None = None,
    word: Word = "read",
    max_tokens: int = 400,
    **look: Unpack[Look],
) -> go.Figure:
    """How hard the prompt pushes each token of one response at several kinds of hook points, one panel each, with common colours.

    With `difference="local"`, panels show what each layer itself adds because of the prompt. Buttons switch between the scales of
    `magnitude_heatmap`; medians and means are those of each hook point, over all tokens of the capture.

    Args:
        captured: Result of `psr.capture` in memory, with these kinds of hook points.
        triplet: Index of the response.
        kinds: Short names as in `capture`: `"attn_out"`, `"mlp_out"`, `"resid_post"`, `"z"`, …
        scale: The scale shown first; by default `absolute` up to 12 layers, `layer` beyond.
        word: What labels a row: the token that was `read`, or the next one, which is `predicted` from the activation.
        max_tokens: Most rows. Beyond it, neighbouring tokens share a cell, which shows the value furthest from 0.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one heatmap per panel. Its `z` is what is drawn, log10 on a logarithmic scale; `customdata` holds the numbers of all
        scales, magnitudes in the activation's units first.

    Raises:
        InputError: not an in-memory capture, a kind that was not captured, or no such response, scale or word.

    Example:
        >>> figure = psr.plots.magnitude_by_kind(captured, kinds=["resid_post"])
        >>> figure.data[0].name
        'residual'
    """
    check_most(max_tokens, "max_tokens")
    rows, words = rows_and_words(captured, triplet, word)
    layers = {kind: _layers_of(captured, kind) for kind in kinds}
    if not layers:
        raise InputError("kinds", "none", "at least one")
    depth = len({layer for some in layers.values() for layer in some})
    tall, wide = math.ceil(len(rows) / max_tokens), math.ceil(depth / MAX_LAYERS)
    pushes = {kind: _push(captured, kind, some) for kind, some in layers.items()}
    views = views_of(pushes, pushes)
    shown = chosen_scale(scale, views, depth)
    labels = token_labels(captured, words, tall)
    titles = [escaped(NAMES.get(kind, kind)) for kind in kinds]
    figure = make_subplots(1, len(pushes), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=titles)
    cells = {scale: {kind: view.pooled(kind, rows, tall, wide) for kind in pushes} for scale, view in views.items()}
    for column, (kind, some) in enumerate(layers.items(), start=1):
        values = {scale: cells[scale][kind] for scale in views}
        figure.add_trace(push_panel(NAMES.get(kind, kind), values, views, shown, layer_labels(some, wide)), row=1, col=column)
    token_axis(figure, labels)
    plot = max(LEAST, len(labels) * ROW)
    note = " ".join(part for part in (word_note(word), grouping_note(len(rows), depth, tall, wide)) if part)
    what = "What each layer adds" if captured.difference == "local" else "Magnitude of the prompt’s effect"
    titled(figure, f"{what}, by part of a block", plot=plot, top=TOP, bottom=BOTTOM, left=label_room(labels), note=note)
    push_colours(figure, cells, views, shown, 79 / plot)
    return figure


def _layers_of(captured: Captured, kind: str) -> list[int]:
    """The layers at which a kind was captured, in order.

    Raises:
        InputError: there is no such kind, or it was not captured.
    """
    if kind not in KINDS:
        raise InputError("kinds", repr(kind), f"one of {', '.join(KINDS)}")
    found = sorted(layer for name in captured.deltas if (layer := layer_of(name)) is not None and name == _name(kind, layer))
    if not found:
        raise InputError(
            "kinds",
            repr(kind),
            f"kinds that were captured: {', '.join(sorted(captured.deltas)[:6])}, …",
            f'Capture with hooks=["{kind}", …].',
        )
    return found


def _push(captured: Captured, kind: str, layers: Sequence[int]) -> Push:
    names = [_name(kind, layer) for layer in layers]
    components, lengths = [], []
    for name in names:
        delta = captured.deltas[name].flatten(1).float()
        mean = delta.mean(dim=0)
        components.append(delta @ torch.nn.functional.normalize(mean, dim=0))
        lengths.append(mean.norm())
    magnitude = torch.stack([captured.magnitude(name).float() for name in names], dim=1)
    norms = [captured.base_norms[name] for name in names if name in captured.base_norms]
    base_norm = torch.stack(norms, dim=1) if len(norms) == len(names) else None
    median = torch.stack([column.quantile(0.5) for column in magnitude.T])
    return Push(magnitude, median, base_norm, torch.stack(components, dim=1), torch.stack(lengths))


def _name(kind: str, layer: int) -> str:
    return KINDS[kind].replace("*", str(layer), 1)
