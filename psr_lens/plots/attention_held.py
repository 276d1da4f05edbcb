"""How much of the prompt's effect is reached with attention free, and with its patterns held."""

from __future__ import annotations

from typing import Final, Unpack, get_args

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from psr_lens._utils.numbers import counted
from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT
from psr_lens.interpretation.patching import FrozenAttention
from psr_lens.interpretation.patching.frozen_result import Attention, Where
from psr_lens.plots.layer_lines import numbers
from psr_lens.plots.look import Look, draws
from psr_lens.plots.style import INK, MUTED, PALETTE, SMALL, escaped, label_room, labelled_rows, titled

_ROW: Final = 36
_BETWEEN: Final = 34
"""Pixels of a run with its two bars, and between panels."""
_COLOURS: Final[dict[Attention, str]] = {"free": PALETTE["A-PSR"], "frozen": PALETTE["paraphrase"]}
_LOWEST: Final = -0.25
"""Shares below this are drawn up to here: a run may be many times as far from the prompt as without steering."""


@draws
def frozen_attention(result: FrozenAttention, **look: Unpack[Look]) -> go.Figure:
    """Share of the prompt's effect that the prompt and each method reach, with attention free and with its patterns frozen.

    Panels are all tokens, the first one of a response, the three after it, and those after these; whiskers are 95 % intervals over
    responses.

    Args:
        result: Result of `psr.patching.freeze_attention`.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with two bars per run in each panel; `customdata` has the shares and their intervals.

    Raises:
        InputError: not a `FrozenAttention`, or one whose prompt has no effect.

    Example:
        >>> found = psr.patching.freeze_attention(model, triplets[:4], {"A-PSR": pirate, "CAA": caa})
        >>> figure = psr.plots.frozen_attention(found)
        >>> figure.data[0].text
        ('prompt', 'A-PSR', 'CAA')
    """
    runs = [name for name in result.free if name != NONE]
    places = [where for where in get_args(Where) if np.isfinite(result.reached(PROMPT, where=where).value)]
    if not places:
        raise InputError("result", "one whose prompt has no effect on the next tokens", "one with an effect")
    labels = [escaped(shortened(name, 18)) for name in runs]
    plot = len(places) * len(runs) * _ROW + (len(places) - 1) * _BETWEEN
    figure = make_subplots(len(places), 1, shared_xaxes=True, vertical_spacing=_BETWEEN / plot, subplot_titles=places)
    figure.update_annotations(font={"size": SMALL, "color": MUTED}, x=0, xanchor="left")
    for row, where in enumerate(places, start=1):
        for attention, colour in _COLOURS.items():
            points = [numbers(result.reached(name, attention, where)) for name in runs]
            figure.add_bar(
                name=f"attention {attention}",
                orientation="h",
                x=[max(value, _LOWEST) for value, _, _ in points],
                y=list(range(len(runs))),
                text=labels,
                textposition="none",
                marker={"color": colour},
                error_x={
                    "array": [max(0.0, high - max(value, _LOWEST)) for value, _, high in points],
                    "arrayminus": [max(0.0, value - max(low, _LOWEST)) for value, low, _ in points],
                    "color": INK,
                    "thickness": 1.2,
                    "width": 3,
                },
                customdata=points,
                hovertemplate="%{text}: %{customdata[0]:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}]",
                legendgroup=attention,
                showlegend=row == 1,
                row=row,
                col=1,
            )
    lowest = min(min(bar.x) - low for bar in figure.data for low in bar.error_x.arrayminus)
    figure.update_xaxes(range=[min(-0.02, lowest - 0.02), 1.05], tickformat=".0%", zeroline=True, showgrid=True)
    figure.update_xaxes(title_text="share of the prompt's effect", row=len(places))
    figure.update_yaxes(labelled_rows(labels))
    figure.update_layout(
        bargap=0.22, bargroupgap=0.06, legend={"orientation": "h", "x": 0, "y": 1 + 26 / plot, "yanchor": "bottom"}
    )
    note = f"{counted(result.responses, 'response')}; 1 − KL(prompted ‖ run) / KL(prompted ‖ none). Whiskers are 95 % intervals."
    if any(point[0] < _LOWEST for bar in figure.data for point in bar.customdata):
        note += f" Bars that end at {_LOWEST:.0%} are longer.".replace("-", "−")
    return titled(figure, "With attention free and frozen", plot=plot, top=96, bottom=54, left=label_room(labels), note=note)
