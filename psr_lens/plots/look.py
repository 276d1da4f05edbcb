"""Width, size of letters and theme of figures: the same three arguments of every figure, understood in one place.

A figure is laid out for letters of 12 pixels, on white. `draws` tells the layout how many pixels there are for text, then multiplies all
lengths and translates all colours of the finished figure.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final, Literal, ParamSpec, TypedDict, get_type_hints

import plotly.graph_objects as go

from psr_lens._utils.arguments import check, checks_arguments
from psr_lens._utils.numbers import is_real
from psr_lens.errors import InputError
from psr_lens.plots.dark import ON_BOTH, darkened

Theme = Literal["light", "dark"]
"""Dark letters on white, or light ones on dark grey. A figure cannot follow the reader's system; those of `psr.report` do."""

FONT_SIZE: Final = 12
"""Size of letters for which figures are laid out, in pixels."""
NARROW: Final = 390
"""Width in pixels for which text is broken into lines if a figure follows its window: that of a phone."""
LEAST: Final = 300
"""Smallest width in pixels at the usual size of letters; what is beside the plot would leave no room for it."""
SIZES: Final = (6.0, 48.0)
"""Smallest and largest size of letters."""


class Look(TypedDict, total=False):
    """Arguments that every figure takes.

    Raises:
        InputError: a width that is too narrow for the letters, letters smaller than 6 or larger than 48 pixels, or an unknown theme.

    Example:
        >>> slide = psr.plots.Look(width=900, font_size=20, theme="dark")
        >>> psr.plots.relative_rmse(comparison, **slide).layout.width
        900
    """

    width: int | None
    """Width in pixels, for which titles, notes and texts are broken into lines; None (the default) for a figure that follows its window
    and fits 390 pixels."""
    font_size: float
    """Size of letters in pixels, 12 by default; small print is a pixel smaller. Rows, lines and margins grow with it."""
    theme: Theme
    """`"light"` (the default) or `"dark"`."""


_P = ParamSpec("_P")
_HINTS: Final[dict[str, Any]] = get_type_hints(Look)
_ROOM: ContextVar[float | None] = ContextVar("room", default=None)


def room() -> float:
    """Width for which the figure that is being drawn is laid out, in pixels at the usual size of letters."""
    return _ROOM.get() or NARROW


def draws(function: Callable[_P, go.Figure]) -> Callable[_P, go.Figure]:
    """Check the arguments of a function that draws a figure, and give the figure the look that is asked for.

    A figure that is drawn for another one gets the look of that one.

    Raises:
        InputError: an argument that does not fit its hint, when the function is called.
    """
    plain = checks_arguments(function)
    taken = inspect.signature(function).parameters
    named = set(taken) - {"look"} if "look" in taken else None  # else it passes on what it does not take

    @wraps(function)
    def with_look(*args: _P.args, **kwargs: _P.kwargs) -> go.Figure:
        look: dict[str, Any] = {name: kwargs.pop(name) for name in _HINTS if name in kwargs}
        for name, value in look.items():
            check(value, _HINTS[name], name)
        if named is not None and (unknown := set(kwargs) - named):
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument {min(unknown)!r}")
        if _ROOM.get() is not None:
            return plain(*args, **kwargs)
        width, size = look.get("width"), float(look.get("font_size", FONT_SIZE))
        factor = _factor(width, size)
        within = _ROOM.set((width or NARROW) / factor)
        try:
            figure = plain(*args, **kwargs)
        finally:
            _ROOM.reset(within)
        return _finished(figure, width, factor, look.get("theme", "light"))

    return with_look


def _factor(width: int | None, size: float) -> float:
    if not SIZES[0] <= size <= SIZES[1]:
        raise InputError("font_size", repr(size), f"{SIZES[0]:g} to {SIZES[1]:g} pixels")
    factor = size / FONT_SIZE
    if width is not None and width < LEAST * factor:
        raise InputError(
            "width",
            repr(width),
            f"{round(LEAST * factor)} pixels or more with letters of {size:g} pixels",
            "Leave it out for a figure that follows its window.",
        )
    return factor


def _finished(figure: go.Figure, width: int | None, factor: float, theme: str) -> go.Figure:
    if width is not None:
        figure.update_layout(width=width, autosize=False)
    if factor == 1 and theme == "light":
        return figure
    plain = {"data": [trace.to_plotly_json() for trace in figure.data], "layout": figure.layout.to_plotly_json()}
    if factor != 1:
        plain = _scaled(plain, factor, "", "")
    if theme == "dark":
        plain = darkened(plain)
        for menu in plain["layout"].get("updatemenus", ()):
            menu["font"] = {**menu.get("font", {}), "color": ON_BOTH}
    return go.Figure(plain)


_IN_PIXELS: Final = frozenset(
    [
        "height",
        "margin.t",
        "margin.b",
        "margin.l",
        "margin.r",
        "margin.pad",
        "pad.t",
        "pad.b",
        "pad.l",
        "pad.r",
        "xshift",
        "yshift",
        "standoff",
        "ticklabelstandoff",
        "thickness",
        "ticklen",
        "tickwidth",
        "borderpad",
        "borderwidth",
        "bordersize",
        "outlinewidth",
        "tracegroupgap",
        "xgap",
        "ygap",
        "font.size",
        "tickfont.size",
        "textfont.size",
        "marker.size",
        "line.width",
        "error_x.width",
        "error_y.width",
    ]
)
"""Lengths in pixels by their names in Plotly, or by those of what they belong to and their own; all others are in units of the data."""


def _scaled(value: Any, factor: float, owner: str, name: str) -> Any:
    """Part of a figure with all lengths multiplied; `owner` and `name` say which part it is."""
    if isinstance(value, dict):
        in_pixels = value.get("lenmode") == "pixels"
        return {
            key: each * factor if in_pixels and key == "len" else _scaled(each, factor, name, key.rpartition(".")[2])
            for key, each in value.items()
        }
    if isinstance(value, str):
        return _SIZE.sub(lambda found: f"{found[1]}{float(found[2]) * factor:g}px", value) if "font-size" in value else value
    if isinstance(value, list | tuple) and value and isinstance(value[0], dict | str | list | tuple):
        return [_scaled(each, factor, owner, name) for each in value]
    if is_real(value) and (name in _IN_PIXELS or f"{owner}.{name}" in _IN_PIXELS):
        return round(value * factor) if name == "ticklabelstandoff" else value * factor  # Plotly takes whole pixels there
    return value


_SIZE: Final = re.compile(r"(font-size:\s*)([\d.]+)px")
