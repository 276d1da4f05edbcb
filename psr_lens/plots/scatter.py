"""The coefficient that a replacement applies to each token, against the one that the prompt calls for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Unpack

import numpy as np
import plotly.graph_objects as go
import torch
from jaxtyping import Float, Int
from plotly.subplots import make_subplots
from torch import Tensor

from psr_lens._utils.short_text import shortened
from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots.argument_checks import check_most
from psr_lens.plots.look import Look, draws
from psr_lens.plots.sliders_and_buttons import MAX_STEPS, steps_of, switched
from psr_lens.plots.style import INK, MUTED, SMALL, escaped, method_styles, round_below, titled, translucent
from psr_lens.plots.token_rows import trace_with_sites
from psr_lens.prompts.token_text import readable
from psr_lens.results.correlation import mean_ranks

MAX_POINTS: Final = 1_200
"""Most points per panel. Of more tokens, evenly spaced ones in order of the wanted coefficient are drawn, so that the largest stay."""
MAX_PANELS: Final = 12
"""Most panels side by side; of more layers, one is drawn at a time, with a slider."""

_COLUMNS: Final = 3
_PANEL: Final = 190
_ALONE: Final = 300
"""Height of the only panel, in pixels."""
_BETWEEN: Final = 90
_LINE: Final = 16
"""Height of a further line in the headings, in pixels."""
_ACROSS: Final = 0.22
_UP: Final = 0.12
"""Least space between labels, as a share of an axis; those across are wider."""


@dataclass(frozen=True)
class SymLog:
    """A scale that is linear near 0 and logarithmic beyond, with a sign: `sign(x)·log10(1 + |x| / unit)`."""

    unit: float
    """Where it goes from linear to logarithmic."""

    @classmethod
    def of(cls, values: Float[np.ndarray, " token"]) -> SymLog:
        """The scale on which the median size of some numbers is where linear becomes logarithmic."""
        sizes = np.abs(values[np.isfinite(values) & (values != 0)])
        return cls(round_below(float(np.median(sizes))) if len(sizes) else 1.0)

    def __call__(self, values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Numbers on the scale."""
        scaled: Float[np.ndarray, "*shape"] = np.sign(values) * np.log10(1 + np.abs(values) / self.unit)
        return scaled

    def ticks(self, low: float, high: float, apart: float) -> list[float]:
        """0 and powers of ten times the unit between two numbers, at least `apart` from each other as a share of the drawn range."""
        powers = self.unit * 10.0 ** np.arange(12)
        drawn = self(powers)
        bottom, top = self(np.array([low, high]))
        kept = [0.0]
        for sign, end in ((1, high), (-1, -low)):
            last = 0.0
            for tick, at in zip(powers.tolist(), drawn.tolist(), strict=True):
                if tick <= end * (1 + 1e-9) and at - last >= apart * (top - bottom):
                    kept.append(sign * tick)
                    last = at
        return sorted(kept)


@draws
def coefficient_scatter(
    result: Comparison, method: str, *, max_points: int = MAX_POINTS, max_layers: int = MAX_STEPS, **look: Unpack[Look]
) -> go.Figure:
    """One panel per layer, one point per token: what the prompt calls for along the directions, and what the replacement adds.

    Points on the diagonal have the right coefficient (assumption 3.2a of Heyman & Vandeputte 2026: the coefficient can be read from the
    token's own activation). A constant gives a horizontal line. Axes are linear near 0 and logarithmic beyond, since a few tokens are
    called for much more than the rest; a panel's heading has Pearson's correlation r, which such tokens dominate, and Spearman's
    correlation ρ of the ranks, in which each token counts alike.

    Args:
        result: Result of `psr.compare`.
        method: Name of the replacement.
        max_points: Most points per panel.
        max_layers: Most layers of the slider; of more, evenly spaced ones are offered.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one panel per site, or, beyond 12 sites, one panel with a slider over layers. Correlations are over all tokens;
        `customdata` holds both coefficients in the activation's units.

    Raises:
        InputError: not a `Comparison`, no such replacement, an adapter, or `max_points` or `max_layers` below 1.

    Example:
        >>> figure = psr.plots.coefficient_scatter(comparison, "CAA")
        >>> figure.layout.annotations[0].text
        'layer 2<br>no spread'
    """
    check_most(max_points, "max_points")
    check_most(max_layers, "max_layers")
    trace = trace_with_sites(result, method)
    every = list(range(len(trace.site_layers)))
    if len(every) <= MAX_PANELS:
        return _panels(result, method, every, max_points, "")
    middle = len(every) // 2
    sites = steps_of(len(every), middle, max_layers)
    note = f"{len(sites)} of {len(every)} layers, evenly spaced." if len(sites) < len(every) else ""
    figures = [_panels(result, method, [site], max_points, note) for site in sites]
    return switched(figures, [trace.site_name(site).removeprefix("layer ") for site in sites], "layer", sites.index(middle))


def _panels(result: Comparison, method: str, sites: Sequence[int], max_points: int, note: str) -> go.Figure:
    trace = trace_with_sites(result, method)
    columns = min(_COLUMNS, len(sites))
    lines = math.ceil(len(sites) / columns)
    names = [trace.site_name(site).replace(", ", "<br>") for site in sites]
    more = _LINE * any("<br>" in name for name in names)
    between = _BETWEEN + more
    plot = _ALONE if len(sites) == 1 else lines * _PANEL + (lines - 1) * between
    figure = make_subplots(
        lines,
        columns,
        horizontal_spacing=0.1,
        vertical_spacing=between / plot if lines > 1 else 0,
        subplot_titles=[
            _heading(name, trace.coefficient[:, site], trace.projection[:, site]) for name, site in zip(names, sites, strict=True)
        ],
    )
    color = method_styles(result)[method].color
    for index, site in enumerate(sites):
        row, column = divmod(index, columns)
        _points(
            figure,
            result,
            (trace.projection[:, site], trace.coefficient[:, site]),
            trace.site_name(site),
            max_points,
            color,
            (row + 1, column + 1),
        )
    figure.update_xaxes(title_text="prompt calls for", title_font_size=SMALL, title_standoff=2, tickangle=0)
    figure.update_yaxes(title_text="replacement adds", title_font_size=SMALL, col=1)
    figure.update_annotations(font={"size": 12, "color": INK})
    notes = [note] if note else []
    if len(result.tokens) > max_points:
        notes.append(
            f"Each panel shows {max_points:,} of {len(result.tokens):,} tokens, evenly spaced in order of the coefficient called for."
        )
    titled(
        figure,
        f"{escaped(shortened(method, 24))}: coefficient applied vs. called for",
        plot=plot,
        top=104 + more,
        bottom=48,
        left=58,
        note=" ".join(notes),
    )
    figure.update_layout(showlegend=False)
    return figure


def _points(
    figure: go.Figure,
    result: Comparison,
    pair: tuple[Float[Tensor, " token"], Float[Tensor, " token"]],
    site: str,
    max_points: int,
    color: str,
    cell: tuple[int, int],
) -> None:
    """The tokens of one panel, and its diagonal."""
    wanted, added = pair
    row, col = cell
    shown = _spread(wanted.argsort(descending=True), max_points)
    numbers = torch.stack([wanted, added], dim=1).double().numpy()
    low, high = min(0.0, float(numbers.min())), max(float(numbers.max()), 1e-6)
    scale = SymLog.of(numbers[:, 0])
    across, up = scale(numbers[:, 0]), scale(numbers[:, 1])
    ends = [float(min(0.0, across.min(), up.min())), float(max(across.max(), up.max()))]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": MUTED, "width": 1, "dash": "dot"}, hoverinfo="skip", row=row, col=col
    )
    texts = readable([result.tokens.strings[at] for at in shown.tolist()], result.tokens.strings)
    figure.add_scatter(
        x=across[shown].astype(np.float32),
        y=up[shown].astype(np.float32),
        customdata=numbers[shown].astype(np.float32),
        mode="markers",
        marker={"color": translucent(color, 0.6), "size": 5, "line": {"width": 0}},
        hovertext=[escaped(shortened(text, 24)) for text in texts],
        hovertemplate=f"%{{hovertext}}<br>{site}<br>"
        "prompt calls for %{customdata[0]:.3g}<br>replacement adds %{customdata[1]:.3g}<extra></extra>",
        row=row,
        col=col,
    )
    for update, apart in ((figure.update_xaxes, _ACROSS), (figure.update_yaxes, _UP)):
        ticks = scale.ticks(low, high, apart)
        names = [f"{tick:g}".replace("-", "−") for tick in ticks]
        update(tickvals=scale(np.array(ticks)).tolist(), ticktext=names, row=row, col=col)


def _heading(site: str, added: Float[Tensor, " token"], wanted: Float[Tensor, " token"]) -> str:
    pair = np.stack([added.double().numpy(), wanted.double().numpy()])
    # The coefficients of a constant differ by rounding.
    if len(added) < 2 or bool((pair.std(axis=1) <= 1e-5 * np.abs(pair).max(axis=1)).any()):
        return f"{site}<br>no spread"
    ranks = np.stack([mean_ranks(each) for each in pair])
    return f"{site}<br>" + "<br>".join(
        f"{sign} = {np.corrcoef(each)[0, 1]:.2f}".replace("-", "−") for sign, each in (("r", pair), ("ρ", ranks))
    )


def _spread(order: Int[Tensor, " token"], most: int) -> Int[Tensor, " shown"]:
    return order if len(order) <= most else order[np.linspace(0, len(order) - 1, most).round().astype(int)]
