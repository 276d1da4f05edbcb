"""What makes a head's queries look for the instruction: under the prompt, without it, and under replacements, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Unpack

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.numbers import counted
from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.interpretation.attribution import ScoreAttribution
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.heatmap import LEAST
from psr_lens.plots.look import Look, draws, room
from psr_lens.plots.share_heatmap import BAR, share_axis
from psr_lens.plots.style import SMALL, escaped, fitted, label_room, labelled_rows, titled
from psr_lens.prompts.token_text import readable

_ROW: Final = 20
_TOP: Final = 46 + BAR
_BOTTOM: Final = 14
_WIDEST: Final = 110
"""Widest column in pixels for which the names of contexts are cut; a wider window shows no more of them."""


@draws
def score_parts(result: ScoreAttribution, most: int = 6, token: int | None = None, **look: Unpack[Look]) -> go.Figure:
    """Parts of the score difference by source, one block of rows for each head and one column for each context.

    A block names the sources whose part is furthest from 0 in any context, in the model's order; the others are one row. These rows sum
    to the row below them, the score difference that the model computes. The last row is the attention to the instruction that follows.

    Args:
        result: Result of `psr.score_attribution`.
        most: Most sources that are named for each head.
        token: A row of `result.tokens`; None for the mean over all tokens.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one heatmap, whose cells show their numbers.

    Raises:
        InputError: not a `ScoreAttribution`, `most` below 1, or a token out of range.

    Example:
        >>> result = psr.score_attribution(model, triplets[:4], {"A-PSR": pirate}, [(2, 3)])
        >>> psr.plots.score_parts(result).layout.title.text
        'Why heads attend to the instruction'
    """
    check_most(most, "most")
    if token is not None and not 0 <= token < len(result.tokens):
        raise InputError("token", token, f"a row from 0 to {len(result.tokens) - 1}")
    parts = result.by_source() if token is None else result.parts[:, :, token]
    attention = result.attention.where(~result.score.isnan(), torch.nan)  # as the parts: of tokens that see the instruction
    attention = attention.nanmean(2) if token is None else attention[..., token]
    labels: list[str] = []
    cells: list[list[float]] = []
    headings: list[int] = []
    attended: dict[int, int] = {}
    for at, (layer, head) in enumerate(result.heads):
        names, values = _rows(result, parts[:, at], most)
        headings.append(len(labels))
        attended[len(labels) + len(names) + 1] = at
        labels += [f"<b>L{layer}H{head}</b>", *names, "attention to it"]
        blank = [math.nan] * len(result.contexts)
        cells += [blank, *values, blank]
    shown = torch.tensor(cells)
    columns = list(range(len(result.contexts)))
    figure = go.Figure(
        go.Heatmap(
            z=shown.numpy(),
            x=columns,
            y=list(range(len(labels))),
            coloraxis="coloraxis",
            text=[["" if math.isnan(value) else _number(value) for value in row] for row in cells],
            texttemplate="%{text}",
            textfont={"size": SMALL},
            customdata=[[escaped(context) for context in result.contexts]] * len(labels),
            xgap=2,
            ygap=1,
            hoverongaps=False,
            hovertemplate="%{customdata}<br>%{z:.3f}<extra></extra>",
        )
    )
    left = label_room(labels)
    column = min(_WIDEST, (room() - left - 10) / len(columns) - 4)
    for row in headings:
        for x, context in enumerate(result.contexts):
            _write(figure, x, row, escaped(fitted(context, column)))
    for row, at in attended.items():
        for x, value in enumerate(attention[:, at].tolist()):
            _write(figure, x, row, "–" if math.isnan(value) else f"{value:.1%}")
    figure.update_xaxes(visible=False, range=[-0.5, len(columns) - 0.5])
    figure.update_yaxes(labelled_rows(labels, zeroline=False))
    plot = max(LEAST, _ROW * len(labels))
    figure.update_layout(coloraxis=share_axis(shown, plot, "score with the instruction − with other tokens"))
    where = "" if token is None else f", on “{escaped(_token(result, token))}”"
    size = (
        f"{counted(int(result.tokens.triplet.max()) + 1, 'response')}, {counted(len(result.tokens), 'token')}. "
        if token is None
        else ""
    )
    note = f"{size}Columns differ by their queries; keys are those of the prompted run."
    return titled(figure, f"Why heads attend to the instruction{where}", plot=plot, top=_TOP, bottom=_BOTTOM, left=left, note=note)


def _rows(result: ScoreAttribution, parts: Float[Tensor, "context source"], most: int) -> tuple[list[str], list[list[float]]]:
    """Names and values of a head's rows: the sources furthest from 0, the rest, and the sum."""
    used = (parts != 0).any(0).nonzero().flatten().tolist()
    sizes = parts.abs().amax(0).nan_to_num()
    chosen: Sequence[int] = sorted(sorted(used, key=lambda source: -float(sizes[source]))[:most])
    rest = [source for source in used if source not in chosen]
    names = [str(result.sources[source]) for source in chosen]
    values = [parts[:, source] for source in chosen]
    if rest:
        names.append(counted(len(rest), "other"))
        values.append(parts[:, rest].sum(1))
    return [*names, "sum"], [each.tolist() for each in (*values, parts.sum(1))]


def _write(figure: go.Figure, x: int, y: int, text: str) -> None:
    figure.add_annotation(x=x, y=y, text=text, font={"size": SMALL}, yanchor="middle")


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _token(result: ScoreAttribution, token: int) -> str:
    return shortened(readable([result.tokens.strings[token]], result.tokens.strings)[0], 18)
