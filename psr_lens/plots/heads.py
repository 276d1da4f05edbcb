"""Which heads read the instruction, what Δ is made of, and which of the instruction's tokens are read."""

from __future__ import annotations

import math
from typing import Final

import plotly.graph_objects as go

from psr_lens.errors import InputError
from psr_lens.interpretation.attribution import PARTS, Attribution
from psr_lens.interpretation.attribution.result import Measure, Part
from psr_lens.plots.heatmap import BOTTOM, LEAST, MAX_LAYERS, ROW, layer_labels, token_axis
from psr_lens.plots.shares import BAR, TURNED, grouped, share_axis, share_panel, strongest, strongest_note
from psr_lens.plots.style import INK, PALETTE, escaped, titled
from psr_lens.plots.tokens import shortened
from psr_lens.prompts.token_text import readable

MAX_HEADS: Final = 64
"""More heads than this are drawn in groups."""

NAMES: Final = {
    "instruction": "read from the instruction",
    "removed": "no longer read (base prompt only)",
    "dilution": "attention to other tokens changed",
    "inputs": "values of other tokens changed",
    "norm": "norm behind attention",
    "mlp": "MLP",
    "direct": "from the layers below",
}
"""What the parts are called in figures."""

_COLORS: Final = {
    "instruction": PALETTE["prompt"],
    "removed": "#000000",
    "dilution": "#E69F00",
    "inputs": PALETTE["S-PSR"],
    "norm": "#8C6D00",
    "mlp": PALETTE["paraphrase"],
    "direct": "#b5b5b5",
}
_TOP: Final = 46 + BAR
_PLOT: Final = 280
_LEGEND_LINE: Final = 20


def head_map(result: Attribution, part: Part = "instruction", measure: Measure = "share", token: int | None = None) -> go.Figure:
    """One part of every head, layers across and heads down; by default what each head reads from the instruction.

    Args:
        result: What `attribute` returned.
        part: One of `PARTS`.
        measure: `"share"` of Δ, or `"norm"`.
        token: A row of `result.tokens`; None for the mean over all of them.

    Returns:
        A figure with one heatmap.

    Raises:
        InputError: no such part, measure or token.
    """
    values = result.reading(part, measure, token).T
    tall, wide = math.ceil(len(values) / MAX_HEADS), math.ceil(len(result.layers) / MAX_LAYERS)
    rows = grouped(len(values), tall)
    shown = strongest(values, tall, wide)
    panel = share_panel(part, shown, layer_labels(result.layers, wide), rows, "head %{y}", written=tall == 1)
    figure = go.Figure(panel)
    token_axis(figure, rows)
    figure.update_yaxes(title_text="head", title_standoff=4)
    plot, bottom = max(LEAST, len(rows) * (ROW + 5)), BOTTOM + TURNED * (wide > 1)
    unit = _share_of(result) if measure == "share" else "length (activation units)"
    figure.update_layout(coloraxis=share_axis(shown, plot, unit, signed=measure == "share"))
    where = "" if token is None else f", on “{escaped(_token(result, token))}”"
    note = strongest_note({"heads": (len(values), tall), "layers": (len(result.layers), wide)})
    return titled(figure, f"{_sentence(part)}, by head{where}", plot=plot, top=_TOP, bottom=bottom, left=44, note=note)


def parts_by_layer(result: Attribution, token: int | None = None) -> go.Figure:
    """What Δ after each layer is made of: shares of the parts, stacked; those that work against Δ go below 0.

    Without a target each layer's bar sums to 1, with the layers below as one part; with a target all bars together do.

    Args:
        result: What `attribute` returned.
        token: A row of `result.tokens`; None for the mean over all of them.

    Returns:
        A figure with one bar a layer and part; parts that are 0 throughout are left out.

    Raises:
        InputError: no such token.
    """
    if token is not None and not -len(result.tokens) <= token < len(result.tokens):
        raise InputError("token", token, f"a row from 0 to {len(result.tokens) - 1}")
    shares = {part: values for part, values in result.by_layer(token).items() if bool((values.abs() > 1e-6).any())}
    figure = go.Figure()
    for part, values in shares.items():
        figure.add_bar(
            name=NAMES[part],
            x=list(result.layers),
            y=values.numpy(),
            marker_color=_COLORS[part],
            hovertemplate="layer %{x}: %{y:.3f}",
        )
    figure.add_hline(y=0, line={"color": INK, "width": 1})
    figure.update_xaxes(title_text="layer", showgrid=False, dtick=math.ceil(len(result.layers) / 16), tick0=result.layers[0])
    figure.update_yaxes(title_text=_share_of(result))
    where = "" if token is None else f", on “{escaped(_token(result, token))}”"
    titled(figure, f"What Δ is made of{where}", plot=_PLOT, top=50, bottom=BOTTOM + _LEGEND_LINE * max(1, len(shares)), left=58)
    figure.update_layout(
        barmode="relative",
        bargap=0.2,
        showlegend=True,
        legend={"orientation": "v", "x": 0, "y": -46 / _PLOT, "yanchor": "top", "traceorder": "normal"},
    )
    return figure


def source_map(result: Attribution, triplet: int = 0, *, measure: str = "share", max_tokens: int = 400) -> go.Figure:
    """Which of the instruction's tokens are read at which layer: sums over heads, on one response.

    Args:
        result: What `attribute` returned with `by_source=True`.
        triplet: Which response.
        measure: `"share"` of Δ, summed over heads, or `"attention"`, their mean.
        max_tokens: Most rows; of more tokens, neighbours share a cell.

    Returns:
        A figure with one heatmap, the source tokens down in reading order.

    Raises:
        InputError: sources were not asked for, no such response or measure, or a prompt without an instruction.
    """
    sources = result.sources
    if sources is None:
        raise InputError("result", "an attribution without sources", "one with them", "Call `attribute(…, by_source=True)`.")
    if measure not in ("share", "attention"):
        raise InputError("measure", repr(measure), "'share' or 'attention'")
    if max_tokens < 1:
        raise InputError("max_tokens", max_tokens, "1 or more")
    if not 0 <= triplet < len(sources.strings) or not sources.strings[triplet]:
        raise InputError("triplet", triplet, f"one of {len(sources.strings)} responses whose prompt has an instruction")
    words = readable(sources.strings[triplet], [each for strings in sources.strings for each in strings])
    values = (
        sources.share[triplet].sum(1).T[: len(words)] if measure == "share" else sources.attention[triplet].mean(1).T[: len(words)]
    )
    tall, wide = math.ceil(len(words) / max_tokens), math.ceil(len(result.layers) / MAX_LAYERS)
    shown = strongest(values, tall, wide)
    labels = [escaped(shortened(word, 18)) + ("" if tall == 1 else " …") for word in words[::tall]]
    panel = share_panel("read", shown, layer_labels(result.layers, wide), labels, "%{customdata}", written=tall == 1)
    panel.customdata = [[label] * shown.shape[1] for label in labels]
    figure = go.Figure(panel)
    token_axis(figure, labels)
    plot, bottom = max(LEAST, len(labels) * (ROW + 5)), BOTTOM + TURNED * (wide > 1)
    unit = _share_of(result) if measure == "share" else "attention, mean over heads"
    figure.update_layout(coloraxis=share_axis(shown, plot, unit, signed=measure == "share"))
    note = strongest_note({"tokens": (len(words), tall), "layers": (len(result.layers), wide)})
    return titled(figure, "Which words of the instruction are read", plot=plot, top=_TOP, bottom=bottom, note=note)


def _share_of(result: Attribution) -> str:
    return "share of the layer’s Δ" if result.target is None else f"share of Δ after layer {result.target}"


def _sentence(part: Part) -> str:
    name = NAMES[PARTS[PARTS.index(part)]]
    return name[0].upper() + name[1:]


def _token(result: Attribution, token: int) -> str:
    return shortened(readable([result.tokens.strings[token]], result.tokens.strings)[0], 18)
