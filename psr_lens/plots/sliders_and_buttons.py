"""Controls in a figure: a slider that switches between figures, and buttons that switch between scales."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.io.json import to_json_plotly
from torch import Tensor

from psr_lens.plots.scales import Scale
from psr_lens.plots.style import GRID, INK, MUTED, PAPER, SMALL

MAX_STEPS: Final = 32
"""Most layers of a slider; of more, evenly spaced ones are offered."""

_TITLE: Final = (26, 20)
"""Pixels above the controls, and per line of the figure's title."""
_SLIDER: Final = 80
_UNDER_SLIDER: Final = 8
_BUTTONS: Final = 36
_SHARED: Final = ("template", "coloraxis", "updatemenus", "sliders")
"""Parts of a layout that are the same in all figures of a slider, or that buttons change."""


def switched(figures: Sequence[go.Figure], labels: Sequence[str], what: str, active: int = 0) -> go.Figure:
    """Several figures as one, with a slider to choose which is shown.

    Buttons of the figures stay, and act on all of them at once; so the figures need the same buttons and the same colour axis.

    Args:
        figures: Figures with the same kinds of traces.
        labels: The slider's label for each.
        what: What is chosen, such as `"layer"`.
        active: Index of the figure shown first, which is also the one in image files.
    """
    if len(figures) == 1:
        return figures[0]
    owners = [index for index, each in enumerate(figures) for _ in each.data]
    layouts = [_with_room(_as_json(each.layout), _SLIDER) for each in figures]
    keys = {key for layout in layouts for key in layout if key not in _SHARED}
    changing = {key for key in keys if any(layout.get(key) != layouts[0].get(key) for layout in layouts)}
    steps: list[dict[str, Any]] = []
    for index, (label, layout) in enumerate(zip(labels, layouts, strict=True)):
        update = {key: layout.get(key) for key in layout if key in changing}
        update |= {key: [] if key in ("annotations", "shapes") else None for key in changing - set(layout)}
        if "coloraxis" in layout:  # its bar stands above the plot, in shares of the plot's height
            update["coloraxis.colorbar.y"] = layout["coloraxis"]["colorbar"]["y"]
            if "updatemenus" not in layout:  # else the buttons set the ends, which are the same in all figures
                update |= {f"coloraxis.{end}": layout["coloraxis"][end] for end in ("cmin", "cmax") if end in layout["coloraxis"]}
        steps.append({"label": label, "method": "update", "args": [{"visible": [owner == index for owner in owners]}, update]})
    shown = go.Figure([trace for each in figures for trace in each.data], figures[active].layout)
    for trace, owner in zip(shown.data, owners, strict=True):
        trace.visible = owner == active
    _join_buttons(shown, figures)
    slider = {
        "steps": steps,
        "active": active,
        "currentvalue": {"prefix": f"{what} ", "font": {"size": 12, "color": INK}},
        "font": {"size": SMALL, "color": MUTED},
        "x": 0,
        "len": 1,
        "bgcolor": GRID,
        "activebgcolor": MUTED,
        "borderwidth": 0,
        "tickcolor": MUTED,
        "ticklen": 4,
        **_below_title(shown, extra=_UNDER_SLIDER),
    }
    shown.update_layout(
        height=shown.layout.height + _SLIDER, margin_t=shown.layout.margin.t + _SLIDER, sliders=[*shown.layout.sliders, slider]
    )
    return shown


def without_slider(figure: go.Figure) -> go.Figure:
    """The figure that a slider shows at first, alone."""
    if not figure.layout.sliders:
        return figure
    kept = [index for index, trace in enumerate(figure.data) if trace.visible is not False]
    alone = go.Figure([figure.data[index] for index in kept], figure.layout)
    for menu in alone.layout.updatemenus:
        for button in menu.buttons:
            changes, layout, traces = button.args
            own = [place for place, trace in enumerate(traces) if trace in kept]
            some = {key: [values[place] for place in own] for key, values in changes.items()}
            button.args = [some, layout, [kept.index(traces[place]) for place in own]]
    alone.layout.sliders = ()
    alone.update_layout(height=figure.layout.height - _SLIDER, margin_t=figure.layout.margin.t - _SLIDER)
    return alone


def add_buttons(
    figure: go.Figure,
    values: Mapping[Scale, Mapping[str, Sequence[Float[Tensor, "..."]]]],
    layouts: Mapping[Scale, Mapping[str, object]],
    active: Scale,
) -> None:
    """Add one button per scale below the title, in place.

    Args:
        figure: The figure.
        values: For each button, attributes of the first traces and their values, trace by trace.
        layouts: For each button, changes of the layout.
        active: The button that is pressed at first.
    """
    if len(values) < 2:
        return
    buttons = []
    for name, changes in values.items():
        packed = {key: [_packed(each) for each in some] for key, some in changes.items()}
        traces = list(range(max(map(len, packed.values()))))
        buttons.append({"label": name, "method": "update", "args": [packed, dict(layouts[name]), traces]})
    menu = {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "active": list(values).index(active),
        "showactive": True,
        "x": 1,
        "xanchor": "right",
        "font": {"size": SMALL, "color": INK},
        "bgcolor": PAPER,
        "bordercolor": GRID,
        **_below_title(figure, 6),
    }
    figure.update_layout(margin_t=figure.layout.margin.t + _BUTTONS, height=figure.layout.height + _BUTTONS, updatemenus=[menu])


def steps_of(count: int, shown: int, most: int = MAX_STEPS) -> list[int]:
    """Indices of the layers that a slider offers: all, or at most `most` evenly spaced ones, with the one that is shown first."""
    if count <= most:
        return list(range(count))
    steps = np.linspace(0, count - 1, most).round().astype(int)
    steps[np.abs(steps - shown).argmin()] = shown
    return sorted(set(steps.tolist()))


def _below_title(figure: go.Figure, least: int = 0, extra: int = 0) -> dict[str, object]:
    """The place between the title and what is above the plot, before room is made for a control."""
    above = _TITLE[0] + _TITLE[1] * (1 + (figure.layout.title.text or "").count("<br>"))
    return {"y": 1, "yanchor": "bottom", "pad": {"b": max(least, figure.layout.margin.t - above) + extra, "t": 0, "l": 0, "r": 0}}


def _as_json(layout: go.Layout) -> dict[str, Any]:
    """A layout without its template as it is in the page; the traces, which take the most of a figure's JSON, are not needed."""
    plain = {key: value for key, value in layout.to_plotly_json().items() if key != "template"}
    found: dict[str, Any] = json.loads(to_json_plotly(plain))
    return found


def _with_room(layout: dict[str, Any], pixels: int) -> dict[str, Any]:
    return {**layout, "height": layout["height"] + pixels, "margin": {**layout["margin"], "t": layout["margin"]["t"] + pixels}}


def _join_buttons(shown: go.Figure, figures: Sequence[go.Figure]) -> None:
    """Let the buttons of the shown figure act on the traces of all figures."""
    starts = np.cumsum([0, *(len(each.data) for each in figures)]).tolist()
    for place, menu in enumerate(shown.layout.updatemenus):
        for index, button in enumerate(menu.buttons):
            own = [each.layout.updatemenus[place].buttons[index].args for each in figures]
            changes = {key: [value for args in own for value in args[0][key]] for key in own[0][0]}
            traces = [start + trace for start, args in zip(starts, own, strict=False) for trace in args[2]]
            button.args = [changes, own[0][1], traces]


def _packed(values: Float[Tensor, "..."]) -> dict[str, str]:
    """Numbers as Plotly packs those of traces, which it does not do for those of buttons."""
    array = np.ascontiguousarray(values.float().numpy())
    packed = {"dtype": "f4", "bdata": base64.b64encode(array.tobytes()).decode()}
    return packed | ({"shape": ", ".join(map(str, array.shape))} if array.ndim > 1 else {})
