"""Where in a block the prompt acts: attention, MLP and residual stream, by token and layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
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
    colour_ends,
    grouping_note,
    layer_labels,
    magnitude_axis,
    magnitude_panel,
    pooled,
    token_axis,
    token_labels,
)
from psr_lens.plots.style import escaped, titled
from psr_lens.plots.token_rows import rows_of

NAMES: Final = {
    "attn_out": "attention",
    "mlp_out": "MLP",
    "resid_post": "residual",
    "resid_mid": "residual, mid",
    "resid_pre": "residual, pre",
}
"""Names of kinds of hook points in figures; other kinds keep TransformerLens's name."""


@checks_arguments
def magnitude_by_kind(
    captured: Captured, triplet: int = 0, kinds: Sequence[str] = ("attn_out", "mlp_out", "resid_post"), *, max_tokens: int = 400
) -> go.Figure:
    """‖Δ‖ of one response at several kinds of hook points, one panel each, with a common colour scale.

    With `difference="local"`, panels show what each layer itself adds because of the prompt.

    Args:
        captured: Result of `psr.capture` in memory, with these kinds of hook points.
        triplet: Index of the response.
        kinds: Short names as in `capture`: `"attn_out"`, `"mlp_out"`, `"resid_post"`, `"z"`, …
        max_tokens: Most rows. Beyond it, neighbouring tokens share a cell, which shows the largest value.

    Returns:
        A figure with one heatmap per panel; `customdata` holds magnitudes in the activation's units, `z` their log10.

    Raises:
        InputError: not an in-memory capture, a kind that was not captured, or no such response.

    Example:
        >>> figure = psr.plots.magnitude_by_kind(captured, kinds=["resid_post"])
        >>> figure.data[0].name
        'residual'
    """
    check_most(max_tokens, "max_tokens")
    rows = rows_of(captured, triplet)
    panels = {kind: _of_kind(captured, kind) for kind in kinds}
    if not panels:
        raise InputError("kinds", "none", "at least one")
    layers = sorted({layer for found in panels.values() for layer in found})
    tall, wide = math.ceil(len(rows) / max_tokens), math.ceil(len(layers) / MAX_LAYERS)
    every = torch.cat([magnitude for found in panels.values() for magnitude in found.values()])
    low, high = colour_ends(every, every)
    labels = token_labels(captured, rows, tall)
    titles = [escaped(NAMES.get(kind, kind)) for kind in panels]
    figure = make_subplots(1, len(panels), shared_yaxes=True, horizontal_spacing=0.02, subplot_titles=titles)
    for column, (kind, found) in enumerate(panels.items(), start=1):
        magnitude = pooled(torch.stack([found[layer][rows] for layer in found], dim=1), tall, wide)
        figure.add_trace(magnitude_panel(NAMES.get(kind, kind), magnitude, layer_labels(list(found), wide), low), row=1, col=column)
    token_axis(figure, labels)
    plot = max(LEAST, len(labels) * ROW)
    figure.update_layout(coloraxis=magnitude_axis(low, high, 92 / plot))
    note = grouping_note(len(rows), len(layers), tall, wide)
    what = "What each layer adds" if captured.difference == "local" else "Magnitude of the prompt’s effect"
    return titled(figure, f"{what}, by part of a block", plot=plot, top=TOP, bottom=BOTTOM, note=note)


def _of_kind(captured: Captured, kind: str) -> dict[int, Float[Tensor, " token"]]:
    if kind not in KINDS:
        raise InputError("kinds", repr(kind), f"one of {', '.join(KINDS)}")
    ending = KINDS[kind].removeprefix("blocks.*.")
    found = {}
    for name in captured.deltas:
        layer = layer_of(name)
        if layer is not None and name == f"blocks.{layer}.{ending}":
            found[layer] = captured.magnitude(name).float()
    if not found:
        raise InputError(
            "kinds",
            repr(kind),
            f"kinds that were captured: {', '.join(sorted(captured.deltas)[:6])}, …",
            f'Capture with hooks=["{kind}", …].',
        )
    return dict(sorted(found.items()))
