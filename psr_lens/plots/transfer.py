"""Two models on the same texts: how far they agree by pair of layers, and a gate of one above what the other reads of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Unpack

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.plots.look import Look, draws
from psr_lens.plots.share_heatmap import BAR
from psr_lens.plots.style import (
    DIVERGING,
    GRID,
    INK,
    LETTERED,
    MONO,
    MUTED,
    PALETTE,
    SEQUENTIAL,
    SMALL,
    colour_bar,
    escaped,
    label_room,
    titled,
)
from psr_lens.plots.text_layout import EDGE, FONT_SIZE, STRIP, PlacedToken, in_lines, strip_axes, strip_tops
from psr_lens.plots.token_rows import signed
from psr_lens.prompts import TokenTable
from psr_lens.prompts.token_text import readable, word_starts
from psr_lens.transfer import Agreement, GateReading

Shown = Literal["magnitude", "gates", "back"]
"""What `agreement` draws: the correlation of log ‖Δ‖, or R² of the source's gates from the target (`gates`), or the other way (`back`)."""

MAX_TOKENS: Final = 300
"""Most tokens of a text that are drawn; of a longer one, the first."""

_CELL: Final = 30
_LARGEST: Final = 560
_LEAST: Final = 150
_TEXT_UP_TO: Final = 9
"""Most columns of a heatmap with its numbers in it, in a window of 390 pixels."""
_PROMPT: Final = "prompt"
"""What stands for the last prompt token, which templates spell differently."""
_TOPS: Final = strip_tops([0, 0])
"""Places of both models' strips."""


@draws
def agreement(result: Agreement, show: Shown = "magnitude", **look: Unpack[Look]) -> go.Figure:
    """How far two models agree, for every pair of layers, with the best monotone matching outlined.

    Args:
        result: Result of `psr.transfer.agreement`.
        show: `"magnitude"`, the correlation of log ‖Δ‖ over tokens; `"gates"`, R² of the source's gates as read from the target's
            activations on texts held out; `"back"`, R² of the target's gates as read from the source's.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one heatmap, the target's layers across, and one line around the matched pairs.

    Raises:
        InputError: the result has no such gates.

    Example:
        >>> figure = psr.plots.agreement(psr.transfer.agreement(model, model, triplets[:4]))
        >>> figure.data[0].z.shape, figure.data[1].x.count(None)
        ((6, 6), 6)
    """
    there, here = (str(each.get("model_name")) for each in (result.source_model, result.target_model))
    if show == "magnitude":
        values, matching = result.magnitude, result.matching
        down, across = (tuple(range(size)) for size in values.shape)
        title, what = "Correlation of log ‖Δ‖, token by token", "correlation"
        note = "Outlined is the best monotone matching: a source layer for each target layer."
    else:
        found = _gates(result, show)
        values, matching = found.r2, found.matching
        down, across = found.gate_layers, found.reader_layers
        if show == "back":  # the target's gates and the source's layers: the source stays on the left
            values, matching, down, across = values.T, tuple((s, t) for t, s in matching), across, down
        owner = there if show == "gates" else here
        title, what = f"How well {owner}’s gates are read from the other model", "R² on texts held out"
        control = float(found.control_mean().value)
        note = f"Outlined is the best monotone matching: a layer for each gate. Shuffled gates: mean R² {_two_digits(control)}."
    figure = go.Figure(_heatmap(values, down, across, what))
    outlines = [_outline(across.index(t), down.index(s)) for s, t in matching]
    figure.add_scatter(
        x=[x for xs, _ in outlines for x in (*xs, None)],
        y=[y for _, ys in outlines for y in (*ys, None)],
        mode="lines",
        line={"color": PALETTE["prompt"], "width": 3},
        hoverinfo="skip",
        showlegend=False,
    )
    for axis, layers, name in ((figure.layout.xaxis, across, here), (figure.layout.yaxis, down, there)):
        step = max(1, len(layers) // 12)
        places = list(range(0, len(layers), step))
        axis.update(tickmode="array", tickvals=places, ticktext=[str(layers[at]) for at in places], showgrid=False)
        axis.update(title={"text": f"layer of {escaped(shortened(name, 24))}"}, range=[-0.5, len(layers) - 0.5])
    plot = min(_LARGEST, max(_LEAST, _CELL * len(down)))
    signs = what == "correlation" and float(values.nan_to_num().min()) < 0
    limits = {"cmin": -1 if signs else 0, "cmax": 1, "colorscale": DIVERGING if signs else SEQUENTIAL[:-1]}
    figure.update_layout(coloraxis={**limits, "colorbar": colour_bar(what, BAR / plot, nticks=5)})
    size = f"{result.texts} texts, {len(result.pairs.text):,} pairs of tokens, {result.instruction!r}."
    return titled(figure, title, plot=plot, top=118, bottom=52, left=56, note=f"{size} {note}")


@draws
def gates_by_family(result: Agreement, text: int = 0, layer: int | None = None, **look: Unpack[Look]) -> go.Figure:
    """A gate of the source on one text, token by token, and below it what the target reads of it, on the target's own tokens.

    The target's reading comes from texts that did not include this one. Tokens that do not end where one of the other model does have no
    number and are grey.

    Args:
        result: Result of `psr.transfer.agreement`, measured with a replacement.
        text: Index of the text.
        layer: Layer of the gate; by default, the one that adds most.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with two bar traces, one bar per token; `customdata` holds the numbers, in the source's units, NaN at grey tokens.

    Raises:
        InputError: a result without gates, no such text, or a layer without a gate.

    Example:
        >>> figure = psr.plots.gates_by_family(psr.transfer.agreement(model, model, triplets[:4], pirate), layer=2)
        >>> figure.layout.title.text
        'Gate of layer 2, and as it is read from ...other model'
    """
    gates = _gates(result, "gates")
    if not 0 <= text < result.texts:
        raise InputError("text", repr(text), f"0 to {result.texts - 1}")
    if layer is not None and layer not in gates.gate_layers:
        raise InputError("layer", layer, f"one of the layers with a gate ({', '.join(map(str, gates.gate_layers))})")
    at = int(gates.gate.abs().sum(0).argmax()) if layer is None else gates.gate_layers.index(layer)
    names = [str(each.get("model_name")) for each in (result.source_model, result.target_model)]
    names = names if names[0] != names[1] else ["source", "target"]
    values = gates.gate[:, at], gates.read[:, at]
    strips: dict[str, tuple[TokenTable, Tensor, Tensor]] = {}
    for name, table, rows, each in zip(names, (result.source_tokens, result.target_tokens), result.pairs[:2], values, strict=True):
        full = torch.full((len(table),), torch.nan, dtype=torch.float32)
        full[rows] = each.float()
        own = table.rows(text)[:MAX_TOKENS]
        strips[name] = (table, own, full[own])
    figure, lines, names = _strips(strips)
    largest = float(torch.cat(values).abs().max()) or 1.0
    signs = float(values[0].min()) < 0
    plot = round(lines * _TOPS[-1] * STRIP)
    axis = {"cmin": -largest if signs else 0, "cmax": largest, "colorscale": LETTERED[signs]}
    bar = colour_bar("what is added, in the source’s units", 66 / plot)
    figure.update_layout(coloraxis={**axis, "colorbar": bar})
    figure.update_layout(coloraxis_colorbar={"lenmode": "pixels", "len": 280, "x": 0, "xanchor": "left"})
    gate, reader = gates.matching[at]
    r2 = float(gates.at(gate, reader).value)
    title = f"Gate of layer {gate}, and as it is read from layer {reader} of the other model"
    note = f"R² {r2:.2f} over all texts, on texts held out. Grey tokens end where no token of the other model does."
    return titled(figure, title, plot=plot, top=112, bottom=10, left=label_room(names), note=note)


def _outline(column: int, row: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The edge of a cell, just inside of it."""
    left, right, low, high = column - 0.46, column + 0.46, row - 0.44, row + 0.44
    return (left, right, right, left, left), (low, low, high, high, low)


def _two_digits(value: float) -> str:
    """Two digits after the point, with a typographic minus sign and none before zero."""
    text = f"{value:.2f}"
    return text.replace("-0.00", "0.00").replace("-", "−")


def _gates(result: Agreement, show: str) -> GateReading:
    found = result.back if show == "back" else result.gates
    if found is None:
        argument = "target_replacement" if show == "back" else "replacement"
        remedy = f"Give `psr.transfer.agreement` a `{argument}`."
        raise InputError("result", "an Agreement without these gates", f"one that was measured with a `{argument}`", remedy)
    return found


def _heatmap(values: Float[Tensor, "source target"], down: Sequence[int], across: Sequence[int], what: str) -> go.Heatmap:
    return go.Heatmap(
        z=values.numpy(),
        x=list(range(len(across))),
        y=list(range(len(down))),
        coloraxis="coloraxis",
        customdata=np.array([[(s, t) for t in across] for s in down]),
        texttemplate="%{z:.2f}" if len(across) <= _TEXT_UP_TO else None,
        textfont={"size": SMALL},
        xgap=1 if len(across) <= 40 else 0,
        ygap=1 if len(down) <= 40 else 0,
        hovertemplate=f"source layer %{{customdata[0]}}<br>target layer %{{customdata[1]}}<br>{what} %{{z:.3f}}<extra></extra>",
        hoverongaps=False,
    )


def _strips(strips: Mapping[str, tuple[TokenTable, Tensor, Tensor]]) -> tuple[go.Figure, int, list[str]]:
    """The strips of both models without title and colours, how many lines of text there are, and the names beside them."""
    placed = {name: _placed(table, rows) for name, (table, rows, _) in strips.items()}
    lines = max(each[-1].line for each in placed.values()) + 1
    figure = go.Figure()
    for order, (name, (table, rows, values)) in enumerate(strips.items()):
        known = ~values.isnan()
        for part, chosen in (("paired", known), ("alone", ~known)):
            tokens = [token for token, keep in zip(placed[name], chosen.tolist(), strict=True) if keep]
            numbers = values[chosen]
            strings = [table.strings[row] for row in rows[chosen].tolist()]
            positions = table.position[rows[chosen]].tolist()
            if part == "paired":
                marker: dict[str, Any] = {"color": numbers.numpy(), "coloraxis": "coloraxis", "line": {"width": 0}}
                template = "%{hovertext}<br>%{customdata:.3g}"
            else:
                marker, template = {"color": GRID, "line": {"width": 0}}, "%{hovertext}<br>no common end"
            if not tokens:
                continue
            figure.add_bar(
                name=escaped(name),
                orientation="h",
                base=[token.left + EDGE / 2 for token in tokens],
                x=[token.width - EDGE for token in tokens],
                y=[token.line * _TOPS[-1] + _TOPS[order] + 0.5 for token in tokens],
                width=0.94,
                marker=marker,
                customdata=numbers.numpy(),
                text=[escaped(token.text) for token in tokens],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                constraintext="none",
                textfont={"family": MONO, "size": FONT_SIZE, "color": INK if part == "paired" else MUTED},
                hovertext=[f"{escaped(string)} ({signed(position)})" for string, position in zip(strings, positions, strict=True)],
                hovertemplate=f"{template}<extra>{escaped(name)}</extra>",
            )
    labels = [escaped(shortened(name, 14)) for name in strips]
    strip_axes(figure, dict(zip((top + 0.5 for top in _TOPS), labels, strict=False)), lines, _TOPS[-1])
    return figure, lines, labels


def _placed(table: TokenTable, rows: Int[Tensor, " row"]) -> list[PlacedToken]:
    """Some tokens as lines of text; the last prompt token, which each template spells in its own way, under one name."""
    strings = [table.strings[row] for row in rows.tolist()]
    positions = table.position[rows].tolist()
    texts = [_PROMPT if at < 0 else text for at, text in zip(positions, readable(strings, table.strings), strict=True)]
    starts = [begins or at == 0 for at, begins in zip(positions, word_starts(strings, table.strings), strict=True)]
    return in_lines(texts, starts, ["↵" in text and at >= 0 for at, text in zip(positions, texts, strict=True)])
