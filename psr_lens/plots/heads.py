"""Which heads read the instruction, the parts of Δ by layer, and which tokens of the instruction are read."""

from __future__ import annotations

import math
from typing import Final, Unpack

import plotly.graph_objects as go

from psr_lens._utils.numbers import is_whole
from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.interpretation.attribution import PARTS, Attribution
from psr_lens.interpretation.attribution.result import Measure, Part
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.heatmap import BOTTOM, LEAST, MAX_LAYERS, ROW, layer_labels, rows_title, token_axis
from psr_lens.plots.look import Look, draws
from psr_lens.plots.share_heatmap import BAR, TURNED, grouped, share_axis, share_panel, strongest, strongest_note
from psr_lens.plots.style import INK, PALETTE, escaped, label_room, titled
from psr_lens.prompts.token_text import readable

MAX_HEADS: Final = 64
"""Most heads drawn one by one; more are drawn in groups."""

NAMES: Final = {
    "instruction": "read from the instruction",
    "removed": "no longer read (base prompt only)",
    "dilution": "attention to other tokens changed",
    "inputs": "values of other tokens changed",
    "norm": "norm after attention",
    "mlp": "MLP",
    "direct": "from the layers below",
}
"""Names of the parts in figures."""

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


@draws
def head_map(
    result: Attribution, part: Part = "instruction", measure: Measure = "share", token: int | None = None, **look: Unpack[Look]
) -> go.Figure:
    """One part of every head, by layer and head; by default, what each head reads from the instruction.

    Args:
        result: Result of `psr.attribute`.
        part: `"instruction"`, `"removed"`, `"dilution"`, `"inputs"` or `"norm"`; see `Attribution`.
        measure: `"share"` of Δ, or `"norm"`.
        token: A row of `result.tokens`; None for the mean over all tokens.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one heatmap.

    Raises:
        InputError: not an `Attribution`, unknown part or measure, or a token out of range.

    Example:
        >>> result = psr.attribute(model, triplets[:4])
        >>> psr.plots.head_map(result).layout.title.text
        'Read from the instruction, by head'
    """
    values = result.reading(part, measure, token).T
    tall, wide = math.ceil(len(values) / MAX_HEADS), math.ceil(len(result.layers) / MAX_LAYERS)
    rows = grouped(len(values), tall)
    shown = strongest(values, tall, wide)
    panel = share_panel(
        part, shown, layer_labels(result.layers, wide), rows, "head %{y}", written=tall == 1, percent=measure == "share"
    )
    figure = go.Figure(panel)
    token_axis(figure, rows)
    left = rows_title(figure, "head", rows)
    plot, bottom = max(LEAST, len(rows) * (ROW + 5)), BOTTOM + TURNED * (wide > 1)
    unit = _share_of(result) if measure == "share" else "length (activation units)"
    figure.update_layout(coloraxis=share_axis(shown, plot, unit, signed=measure == "share"))
    where = "" if token is None else f", on “{escaped(_token(result, token))}”"
    note = strongest_note({"heads": (len(values), tall), "layers": (len(result.layers), wide)})
    return titled(figure, f"{_sentence(part)}, by head{where}", plot=plot, top=_TOP, bottom=bottom, left=left, note=note)


@draws
def parts_by_layer(result: Attribution, token: int | None = None, **look: Unpack[Look]) -> go.Figure:
    """The parts of Δ after each layer as stacked shares; parts that work against Δ are below 0.

    Without a target, each layer's bar sums to 1 and the layers below are one of its parts. With a target, all bars together sum to 1.

    Args:
        result: Result of `psr.attribute`.
        token: A row of `result.tokens`; None for the mean over all tokens.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one bar per layer and part; parts that are 0 everywhere are left out.

    Raises:
        InputError: not an `Attribution`, or a token out of range.

    Example:
        >>> result = psr.attribute(model, triplets[:4])
        >>> psr.plots.parts_by_layer(result).data[0].name
        'read from the instruction'
    """
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
    titled(figure, f"Parts of Δ by layer{where}", plot=_PLOT, top=50, bottom=BOTTOM + _LEGEND_LINE * max(1, len(shares)), left=58)
    figure.update_layout(
        barmode="relative",
        bargap=0.2,
        showlegend=True,
        legend={"orientation": "v", "x": 0, "y": -46 / _PLOT, "yanchor": "top", "traceorder": "normal"},
    )
    return figure


@draws
def source_map(
    result: Attribution, triplet: int = 0, *, measure: str = "share", max_tokens: int = 400, **look: Unpack[Look]
) -> go.Figure:
    """Which tokens of the instruction are read at which layer, over all heads, on one response.

    Args:
        result: Result of `psr.attribute(…, by_source=True)`.
        triplet: Index of the response.
        measure: `"share"` of Δ, summed over heads, or `"attention"`, averaged over heads.
        max_tokens: Most rows. Beyond it, neighbouring tokens share a cell.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one heatmap; rows are source tokens in reading order.

    Raises:
        InputError: not an `Attribution`, one without sources, no such response, unknown measure, or a prompt without an instruction.

    Example:
        >>> result = psr.attribute(model, triplets[:2], by_source=True)
        >>> psr.plots.source_map(result).layout.title.text
        'Instruction tokens read, by layer'
    """
    check_most(max_tokens, "max_tokens")
    sources = result.sources
    if sources is None:
        raise InputError("result", "an Attribution without sources", "one with sources", "Call `psr.attribute(…, by_source=True)`.")
    if measure not in ("share", "attention"):
        raise InputError("measure", repr(measure), "'share' or 'attention'")
    if not is_whole(triplet) or not 0 <= triplet < len(sources.strings) or not sources.strings[triplet]:
        raise InputError("triplet", repr(triplet), f"one of {len(sources.strings)} responses whose prompt has an instruction")
    words = readable(sources.strings[triplet], [each for strings in sources.strings for each in strings])
    values = (
        sources.share[triplet].sum(1).T[: len(words)] if measure == "share" else sources.attention[triplet].mean(1).T[: len(words)]
    )
    tall, wide = math.ceil(len(words) / max_tokens), math.ceil(len(result.layers) / MAX_LAYERS)
    shown = strongest(values, tall, wide)
    labels = [escaped(shortened(word, 18)) + ("" if tall == 1 else " …") for word in words[::tall]]
    panel = share_panel(
        "read", shown, layer_labels(result.layers, wide), labels, "%{customdata}", written=tall == 1, percent=measure == "share"
    )
    panel.customdata = [[label] * shown.shape[1] for label in labels]
    figure = go.Figure(panel)
    token_axis(figure, labels)
    plot, bottom = max(LEAST, len(labels) * (ROW + 5)), BOTTOM + TURNED * (wide > 1)
    unit = _share_of(result) if measure == "share" else "attention, mean over heads"
    figure.update_layout(coloraxis=share_axis(shown, plot, unit, signed=measure == "share"))
    note = strongest_note({"tokens": (len(words), tall), "layers": (len(result.layers), wide)})
    return titled(
        figure, "Instruction tokens read, by layer", plot=plot, top=_TOP, bottom=bottom, left=label_room(labels), note=note
    )


def _share_of(result: Attribution) -> str:
    return "share of the layer’s Δ" if result.target is None else f"share of Δ after layer {result.target}"


def _sentence(part: Part) -> str:
    name = NAMES[PARTS[PARTS.index(part)]]
    return name[0].upper() + name[1:]


def _token(result: Attribution, token: int) -> str:
    return shortened(readable([result.tokens.strings[token]], result.tokens.strings)[0], 18)
