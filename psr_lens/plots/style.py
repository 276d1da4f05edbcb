"""The common style of all figures: a colour for each role, one template, and helpers for text and units."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from psr_lens.evaluation.comparison import Comparison, MethodTrace
from psr_lens.evaluation.faithfulness_result import SiteFaithfulness
from psr_lens.evaluation.methods import NONE, PARAPHRASE, PROMPT
from psr_lens.plots.look import room
from psr_lens.plots.palette import DIVERGING as DIVERGING
from psr_lens.plots.palette import GRID as GRID
from psr_lens.plots.palette import INK as INK
from psr_lens.plots.palette import LETTERED as LETTERED
from psr_lens.plots.palette import MUTED as MUTED
from psr_lens.plots.palette import PALETTE as PALETTE
from psr_lens.plots.palette import PAPER as PAPER
from psr_lens.plots.palette import SEQUENTIAL as SEQUENTIAL
from psr_lens.plots.palette import SPARE as SPARE
from psr_lens.plots.palette import Role as Role

FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"
MONO: Final = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
SMALL: Final = 11
"""Smallest font size in any figure, in pixels."""
_NOTE_LINE: Final = 15
_RIGHT: Final = 10
_TITLE_LINE: Final = 20
_TITLE: Final = 15
"""Size of titles, in pixels."""
_EDGE: Final = 10
"""Pixels between the edge of a figure and its title and note."""

_SYMBOLS: Final = ("circle", "square", "diamond", "triangle-up", "x")
_CONSTANT: Final = 1e-3
"""A coefficient counts as constant if its range is below this share of its largest value."""


@dataclass(frozen=True)
class MethodStyle:
    """How one method is drawn."""

    role: Role
    """Its role."""
    color: str
    """Colour of the role; a different shade for further methods of the same role."""
    symbol: str
    """Marker, which distinguishes lines without colour."""


def role_of(trace: MethodTrace) -> Role:
    """The role of a replacement, determined from its coefficients rather than its name."""
    largest, spread = trace.coefficient.abs().amax(dim=0), trace.coefficient.amax(dim=0) - trace.coefficient.amin(dim=0)
    if bool((largest > 0).any()) and bool((spread <= _CONSTANT * largest).all()):
        return "constant"
    return "S-PSR" if len(set(trace.site_layers)) == 1 else "A-PSR"


def role_of_sites(sites: Sequence[SiteFaithfulness]) -> Role:
    """The same, from the sites of a `Faithfulness`."""
    sizes = [np.abs(site.coefficient) for site in sites if len(site.coefficient)]
    if any(each.max() > 0 for each in sizes) and all(np.ptp(each) <= _CONSTANT * each.max() for each in sizes):
        return "constant"
    return "S-PSR" if len({site.layer for site in sites}) == 1 else "A-PSR"


def method_styles(result: Comparison) -> dict[str, MethodStyle]:
    """Styles by name: all replacements of a result, the prompt, the paraphrase baseline and `none`."""
    return styles_of({name: role_of(trace) for name, trace in result.methods.items()})


def styles_of(roles: Mapping[str, Role]) -> dict[str, MethodStyle]:
    """Styles of methods by their roles, and of the prompt, the paraphrase baseline and `none`."""
    styles = {
        PROMPT: MethodStyle("prompt", PALETTE["prompt"], "circle"),
        PARAPHRASE: MethodStyle("paraphrase", PALETTE["paraphrase"], "circle"),
        NONE: MethodStyle("none", PALETTE["none"], "circle"),
    }
    seen: Counter[Role] = Counter()
    for name, role in roles.items():
        styles[name] = MethodStyle(role, _variant(role, seen[role]), _SYMBOLS[seen.total() % len(_SYMBOLS)])
        seen[role] += 1
    return styles


def named_styles(names: Sequence[str]) -> dict[str, MethodStyle]:
    """Styles of methods by name alone, read as in the paper: S- for one layer, A- for all layers, Const for constant steering."""
    styles = styles_of({name: _role_by_name(name) for name in names if name not in (NONE, PROMPT)})
    return {name: styles[name] for name in names}


def shown_name(name: str) -> str:
    """A method's name as figures and tables show it."""
    return "paraphrase baseline" if name == PARAPHRASE else name


def _role_by_name(name: str) -> Role:
    if name.endswith("+ prompt"):
        return "prompt"
    if "PSR" not in name:
        return "constant"
    return "S-PSR" if name.startswith("S-") else "A-PSR"


def _variant(role: Role, index: int) -> str:
    """The role's colour for its first method, a darker shade for the second, then the spare colours."""
    color = PALETTE[role]
    if index > 1:
        return SPARE[(index - 2) % len(SPARE)]
    return color if index == 0 else "#" + "".join(f"{round(part * 0.55):02X}" for part in _channels(color))


def translucent(color: str, opacity: float) -> str:
    """A `#RRGGBB` colour as `rgba(…)`."""
    red, green, blue = _channels(color)
    return f"rgba({red},{green},{blue},{opacity})"


def layer_colors(count: int) -> list[str]:
    """Light to dark for layers in order, without the lightest shades, which are invisible on white."""
    shades = [0.3 + 0.7 * index / max(1, count - 1) for index in range(count)] if count > 1 else [0.8]
    return [str(color) for color in sample_colorscale(SEQUENTIAL, shades)]


def _channels(color: str) -> tuple[int, int, int]:
    return (int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16))


def _template() -> go.layout.Template:
    axis = {
        "gridcolor": GRID,
        "linecolor": MUTED,
        "showline": False,
        "zeroline": False,
        "ticks": "",
        "tickfont": {"size": SMALL, "color": INK},
        "title": {"font": {"size": 12, "color": INK}, "standoff": 8},
    }
    layout = go.Layout(
        font={"family": FONT, "size": 12, "color": INK},
        paper_bgcolor=PAPER,
        plot_bgcolor=PAPER,
        colorway=[PALETTE["A-PSR"], PALETTE["prompt"], PALETTE["paraphrase"], PALETTE["constant"], PALETTE["S-PSR"]],
        title={"font": {"size": 15, "color": INK}, "x": 0, "xref": "container", "xanchor": "left", "pad": {"l": 10}},
        hoverlabel={"bgcolor": PAPER, "bordercolor": MUTED, "font": {"family": FONT, "size": 12, "color": INK}},
        legend={"font": {"size": 12, "color": INK}, "bgcolor": "rgba(255,255,255,0)"},
        annotationdefaults={"font": {"size": 12, "color": INK}, "showarrow": False},
        xaxis=axis,
        yaxis=axis,
        autosize=True,
    )
    return go.layout.Template(layout=layout)


TEMPLATE: Final = _template()
"""Explicit background, text and grid colours: legible in print, on a light page and in a dark notebook."""


def titled(
    figure: go.Figure,
    title: str,
    *,
    plot: int,
    top: int,
    bottom: int,
    left: int = _EDGE,
    note: str = "",
) -> go.Figure:
    """Give a figure the template, a title above its plot area and a note below; the width follows the window.

    Title and note wrap at the width of the figure and start at its left edge.

    Args:
        figure: The figure, which is changed in place.
        title: Its title.
        plot: Height of the plot area in pixels.
        top: Margin above the plot area, in pixels; it grows with the title.
        bottom: Margin below the plot area, in pixels; it grows with the note.
        left: Margin left of the plot area, in pixels; `label_room` of the labels, if they stand there.
        note: A note.
    """
    lines = in_lines_of(title, room() - 2 * _EDGE, _TITLE)
    top += _TITLE_LINE * (len(lines) - 1)
    told = in_lines_of(note, room() - 2 * _EDGE, SMALL) if note else []
    below = len(told) * _NOTE_LINE + 10 if told else 0
    figure.update_layout(
        template=TEMPLATE,
        title={
            "text": "<br>".join(lines),
            "yref": "container",
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 12 + (_TITLE_LINE - 4) * (len(lines) - 1)},
        },
        height=plot + top + bottom + below,
        margin={"t": top, "b": bottom + below, "l": left, "r": _RIGHT, "pad": 0},
    )
    if told:
        figure.add_annotation(
            text="<br>".join(map(escaped, told)),
            x=0,
            xref="paper",
            xshift=_EDGE - left,
            y=0,
            yref="paper",
            yshift=-2 - bottom,
            xanchor="left",
            yanchor="top",
            align="left",
            font={"size": SMALL, "color": MUTED},
        )
    return figure


def text_width(text: str, size: float) -> float:
    """Width of a text without markup in pixels, in a wide sans-serif font (DejaVu Sans); others are at most that."""
    return sum(map(_letter, text)) * size


def _letter(letter: str) -> float:
    """Width of a letter, in sizes of the font."""
    if ord(letter) >= 0x2E80:  # Chinese, Japanese, Korean; emoji
        return 1.0 if ord(letter) < 0x1F000 else 1.3
    for letters, width in (("iljtfrI.,:;'’|!()[]/ ", 0.35), ("mwMW@%#~+=<>—…→↵■", 0.95)):
        if letter in letters:
            return width
    return 0.7 if letter.isupper() else 0.61


def in_lines_of(text: str, pixels: float, size: float) -> list[str]:
    """A text without markup as lines that fit a width; a word that does not fit alone is broken."""
    lines: list[str] = []
    for word in text.split(" "):
        while len(word) > 1 and text_width(word, size) > pixels:
            most = max(1, sum(text_width(word[: end + 1], size) <= pixels for end in range(len(word))))
            lines.append(word[:most])
            word = word[most:]
        if lines and text_width(f"{lines[-1]} {word}", size) <= pixels:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [line for line in lines if line] or [text]


def fitted(text: str, pixels: float, size: float = SMALL) -> str:
    """The beginning of a text without markup that fits a width, with an ellipsis if it is cut."""
    if text_width(text, size) <= pixels:
        return text
    kept = ""
    for letter in text:
        if text_width(f"{kept}{letter}…", size) > pixels:
            break
        kept += letter
    return kept.rstrip() + "…"


def label_room(labels: Iterable[str], size: int = SMALL, *, mono: bool = False) -> int:
    """Margin for labels beside a plot, in pixels; their markup takes no room."""
    plain = [html.unescape(_MARKUP.sub("", label)) for label in labels]
    widest = max((len(each) * 0.61 * size if mono else text_width(each, size) for each in plain), default=0.0)
    return math.ceil(widest) + _EDGE


_MARKUP: Final = re.compile(r"<[^>]*>")


def wrapped(text: str, pixels: float, size: float = SMALL) -> str:
    """Text broken into lines of a width, which Plotly does not do by itself; markup in it is escaped."""
    return "<br>".join(map(escaped, in_lines_of(text, pixels, size)))


def escaped(text: str) -> str:
    """Text with Plotly's markup (`<b>`, `&lt;`) escaped."""
    return html.escape(text, quote=False)


def labelled_rows(labels: Sequence[str], **axis: object) -> dict[str, object]:
    """The y axis of rows 0, 1, … from above, each with its label."""
    return {
        "tickmode": "array",
        "tickvals": list(range(len(labels))),
        "ticktext": list(labels),
        "range": [len(labels) - 0.5, -0.5],
        "showgrid": False,
        **axis,
    }


def colour_bar(title: str, above: float, **ticks: object) -> dict[str, object]:
    """A horizontal colour bar whose title begins `above` the plot, in shares of the plot's height."""
    return {
        "orientation": "h",
        "thickness": 10,
        "len": 0.96,
        "x": 0.5,
        "xanchor": "center",
        # Not "bottom": above the plot, Plotly would then move the figure's own titles.
        "y": 1 + above,
        "yanchor": "top",
        "title": {"text": title, "side": "top", "font": {"size": 12}},
        "tickfont": {"size": SMALL},
        "outlinewidth": 0.5,
        **ticks,
    }


def real_units(exponent: float) -> str:
    """The value of a log10 tick in plain notation: 0.1, 1, 10, 2,000."""
    value = 10.0**exponent
    if value >= 1e5 or value < 1e-4:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e−").replace("e-", "e−").replace("e+", "e")
    text = f"{value:,.{max(0, 1 - math.floor(exponent + 1e-9))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks for an axis of log10 values: powers of ten, with 2 and 5 in between if fewer than three powers fit, and more if needed."""
    decades: list[float] = [float(power) for power in range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)]
    if len(decades) >= 3:
        return decades
    steps: list[float] = []
    for parts in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        steps = [power + math.log10(part) for power in range(math.floor(low), math.ceil(high) + 1) for part in parts]
        steps = [step for step in steps if low - 1e-9 <= step <= high + 1e-9]
        if len(steps) > 1:
            break
    if len(steps) > 1:
        return steps
    step = round_below((10**high - 10**low) / 2) if high > low else 0.0  # too narrow for round numbers: evenly spaced values
    evenly = [math.log10(step * part) for part in range(math.ceil(10**low / step), math.floor(10**high / step) + 1)] if step else []
    return evenly or steps or [low]


def round_below(value: float) -> float:
    """The largest of 1, 2, 5 × 10ⁿ that is at most `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(part * power for part in (1.0, 2.0, 5.0) if part * power <= value * (1 + 1e-9))
