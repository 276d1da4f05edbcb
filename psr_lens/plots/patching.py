"""The share of an effect that goes through each layer, token and head, as measured by patching."""

from __future__ import annotations

import math
from typing import Final, Unpack

import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.interpretation.patching import PatchGrid
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.heads import MAX_HEADS
from psr_lens.plots.heatmap import BOTTOM, LEAST, MAX_LAYERS, ROW, layer_labels, rows_title, token_axis, token_labels
from psr_lens.plots.look import Look, draws
from psr_lens.plots.share_heatmap import BAR, TURNED, grouped, share_axis, share_panel, strongest, strongest_note
from psr_lens.plots.style import escaped, titled
from psr_lens.plots.token_rows import rows_of, signed

_TOP: Final = 46 + BAR

WHAT: Final = {
    "resid_pre": "resid_pre",
    "resid_post": "Residual stream",
    "attn_out": "Attention",
    "mlp_out": "MLP",
    "z": "Heads",
}
"""What is patched, in titles, which fit one line of a window of 390 pixels."""


@draws
def patch_map(
    grid: PatchGrid, triplet: int | None = 0, *, head: int | None = None, max_tokens: int = 400, **look: Unpack[Look]
) -> go.Figure:
    """Share of the effect by layer and token, or by layer and head if all tokens were patched at once.

    Args:
        grid: Result of `psr.patching.patch` or `psr.patching.ablate`.
        triplet: Index of the response; None for the mean over all responses, by position in the response.
        head: The head to show, if heads were patched token by token; None for the head furthest from 0 in each cell.
        max_tokens: Most rows. Beyond it, neighbouring tokens share a cell.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one heatmap.

    Raises:
        InputError: not a `PatchGrid`, no such response or head, or `max_tokens` below 1.

    Example:
        >>> grid = psr.patching.patch(model, triplets[:1], layers=[2, 5], cells="all")
        >>> psr.plots.patch_map(grid).layout.title.text
        'Residual stream patched into the base run'
    """
    check_most(max_tokens, "max_tokens")
    heads = grid.values.shape[2]
    if head is not None and (grid.cells == "all" or not 0 <= head < heads):
        raise InputError("head", head, f"None, or with cells='token' a head from 0 to {heads - 1}")
    values, labels, group = _by_head(grid, triplet) if grid.cells == "all" else _by_token(grid, triplet, head, max_tokens)
    most = MAX_HEADS if grid.cells == "all" else max_tokens
    tall, wide = math.ceil(len(values) / most), math.ceil(len(grid.layers) / MAX_LAYERS)
    shown = strongest(values, tall, wide)
    panel = share_panel(grid.measured, shown, layer_labels(grid.layers, wide), labels, "%{customdata}", written=grid.cells == "all")
    panel.customdata = [[label] * shown.shape[1] for label in labels]
    figure = go.Figure(panel)
    token_axis(figure, labels)
    rows = "head" if grid.cells == "all" and heads > 1 else "position" if grid.cells == "token" and triplet is None else ""
    left = rows_title(figure, rows, labels)
    plot = max(LEAST, len(labels) * (ROW if grid.cells == "token" else ROW + 5))
    figure.update_layout(coloraxis=share_axis(shown, plot, f"{grid.reference}’s effect {grid.measured}"))
    sizes = {group: (len(values), tall), "layers": (len(grid.layers), wide)}
    notes = [strongest_note(sizes)]
    if grid.cells == "token" and heads > 1 and head is None:
        notes.append(f"Of {heads} heads, each cell shows the one furthest from 0.")
    bottom = BOTTOM + TURNED * (wide > 1)
    return titled(figure, _title(grid), plot=plot, top=_TOP, bottom=bottom, left=left, note=" ".join(filter(None, notes)))


def _title(grid: PatchGrid) -> str:
    if grid.what == "replacement":
        return "Replacement with one site left out" if grid.measured == "lost" else "One site of a replacement alone"
    what = WHAT.get(grid.what, escaped(grid.what))
    return f"{what} patched into the {'base' if grid.measured == 'recovered' else 'prompted'} run"


def _by_head(grid: PatchGrid, triplet: int | None) -> tuple[Float[Tensor, "head layer"], list[str], str]:
    values = (grid.mean() if triplet is None else grid.of(triplet)[0]).T
    if len(values) == 1:
        return values, ["all tokens"], "rows"
    return values, grouped(len(values), math.ceil(len(values) / MAX_HEADS)), "heads"


def _measured(values: Float[Tensor, "row layer head"]) -> Bool[Tensor, " row"]:
    """Rows with a number; all rows if none has one. The last token has none, since what it decides is not in the response."""
    known: Tensor = ~values.isnan().flatten(1).all(1)
    return known if bool(known.any()) else torch.ones_like(known)


def _by_token(
    grid: PatchGrid, triplet: int | None, head: int | None, max_tokens: int
) -> tuple[Float[Tensor, "row layer"], list[str], str]:
    if triplet is None:
        positions, values = grid.by_position()
        kept = _measured(values)
        positions, values = positions[kept], values[kept]
        tall = math.ceil(len(positions) / max_tokens)
        labels = [signed(int(position)) for position in positions[::tall]]
    else:
        rows = rows_of(grid, triplet)
        rows = rows[_measured(grid.values[rows])]
        values = grid.values[rows]
        labels = token_labels(grid, rows, math.ceil(len(rows) / max_tokens))
    if head is not None:
        return values[..., head], labels, "tokens"
    at = values.abs().nan_to_num(nan=-1.0).argmax(-1, keepdim=True)
    return torch.gather(values, -1, at).squeeze(-1), labels, "tokens"
