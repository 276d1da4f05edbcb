"""Figures on a dark page: each colour replaced by the one that stands for it there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from psr_lens.plots.palette import DARK, PAPER

_HEX: Final = re.compile(r"#[0-9a-fA-F]{6}")
_COLORS: Final = re.compile(r"#[0-9a-fA-F]{6}|rgba?\([\d., ]*\)")
_IN_MARKUP: Final = re.compile(r'(<\w+ style="color:)(#[0-9a-fA-F]{6})')
_CONTRAST: Final = 3.0
"""Least contrast with the page of colours that the table does not have."""
ON_BOTH: Final = "#757a80"
"""Letters of buttons: Plotly draws the one that is pressed almost white, and the others have the page's colour; 4:1 on both."""

Rgb = tuple[float, ...]


def on_dark(color: str) -> str:
    """The colour on a dark page: that of `DARK`, or itself, lightened until its contrast with the page is 3:1.

    What is neither `#rrggbb` nor `rgb(…)` stays as it is.
    """
    lower = color.lower()
    if not _HEX.fullmatch(lower) and not lower.startswith("rgb"):
        return color
    if lower in DARK:
        return DARK[lower]
    some = _parts(lower)
    if len(some) == 4:
        plain = _hex(some)
        red, green, blue = (f"{part:g}" for part in _parts(DARK.get(plain, plain))[:3])
        return f"rgba({red},{green},{blue},{some[3]:g})"
    page, light, share = _luminance(_parts(DARK[PAPER])), _hex(some), 0.1
    while share < 1 and (_luminance(_parts(light)) + 0.05) / (page + 0.05) < _CONTRAST:
        light = _hex([each + (255 - each) * share for each in some])
        share += 0.1
    return light


def dark_colors(texts: Iterable[str]) -> dict[str, str]:
    """What `on_dark` makes of each colour in the JSON of some figures, by the colour in small letters, for a script to look up."""
    found = {color.lower() for text in texts for color in _COLORS.findall(text)}
    return {color: on_dark(color) for color in sorted(found)}


def darkened(value: Any, name: str = "") -> Any:
    """A part of a figure's JSON, with its name: only what is a colour by its name changes, and colours of markup; never a token."""
    if isinstance(value, str):
        if "color" in name.lower():
            return on_dark(value)
        return _IN_MARKUP.sub(lambda found: found[1] + on_dark(found[2]), value) if "style=" in value else value
    if isinstance(value, dict):
        return {key: darkened(each, key) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return (
            [darkened(each, name) for each in value]
            if any(isinstance(each, str | dict | list | tuple) for each in value)
            else value
        )
    return value


def _parts(color: str) -> Rgb:
    if color.startswith("#"):
        return tuple(float(int(color[at : at + 2], 16)) for at in (1, 3, 5))
    return tuple(float(part) for part in re.findall(r"[\d.]+", color))


def _hex(some: Rgb | list[float]) -> str:
    return "#" + "".join(f"{round(each):02x}" for each in list(some)[:3])


def _luminance(some: Rgb) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (each / 255 for each in some[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
