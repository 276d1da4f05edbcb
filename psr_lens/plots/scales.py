"""Scales on which figures show how hard a token is pushed: in the activation's units, or so that layers can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison
from psr_lens.evaluation.methods import PROMPT
from psr_lens.plots.share_heatmap import strongest
from psr_lens.plots.style import DIVERGING, SEQUENTIAL, log_ticks, real_units
from psr_lens.plots.token_rows import traces_of

Scale = Literal["absolute", "layer", "relative", "projection", "cosine"]
"""What a colour stands for, with Δ the change that the prompt (or the replacement) makes to the activation A of the unsteered run:

- `absolute`: ‖Δ‖, in the activation's units;
- `layer`: ‖Δ‖ over the median of the prompt's ‖Δ‖ at that layer, over all tokens of the result;
- `relative`: ‖Δ‖ / ‖A‖ of the same token at the same layer;
- `projection`: Δ·m / ‖m‖², with m the mean of the prompt's Δ at that layer over all tokens of the result. It is 1 on average over the
  prompt's tokens, and exactly 1 on every token for a constant steering vector m; below 0, a token is pushed the other way;
- `cosine`: the cosine of Δ with m.

The mean m counts massive tokens, as difference in means does: a `projection` is the coefficient on the vector that is really added.
"""

MANY_LAYERS: Final = 12
"""Most layers for which `absolute` is the default; beyond it is `layer`, since ‖Δ‖ grows with depth and colours would show depth only."""

_SIGNED: Final = ("projection", "cosine")
_TITLES: Final[dict[Scale, str]] = {
    "absolute": "‖Δ‖ (activation units)",
    "layer": "‖Δ‖ / median of the layer",
    "relative": "‖Δ‖ / ‖A‖",
    "projection": "Δ along the layer’s mean Δ (mean: 1)",
    "cosine": "cosine of Δ with the layer’s mean Δ",
}
_HOVER: Final[dict[Scale, str]] = {
    "absolute": "magnitude {}",
    "layer": "{} × the layer’s median",
    "relative": "{} × ‖A‖",
    "projection": "{} along the mean Δ",
    "cosine": "cosine {}",
}
_DECADES: Final = 4.0
"""Largest range of a logarithmic colour scale, in powers of ten."""
_INNER: Final = 0.99
"""Share of the prompt's values within the ends of the `projection` scale."""


@dataclass(frozen=True, eq=False)
class Push:
    """How hard each token is pushed at each layer, in one panel of a figure."""

    magnitude: Float[Tensor, "token layer"]
    """‖Δ‖."""
    median: Float[Tensor, " layer"]
    """Median of the prompt's ‖Δ‖ over tokens."""
    base_norm: Float[Tensor, "token layer"] | None = None
    """‖A‖ of the unsteered run, if known."""
    component: Float[Tensor, "token layer"] | None = None
    """Signed length of Δ along the direction of the prompt's mean Δ, if known."""
    mean_length: Float[Tensor, " layer"] | None = None
    """Length of the prompt's mean Δ, if known."""

    def on(self, scale: Scale) -> Float[Tensor, "token layer"] | None:
        """The numbers of a scale; NaN where it is undefined, None if what it needs is not known."""
        parts = {
            "absolute": (self.magnitude, torch.ones(())),
            "layer": (self.magnitude, self.median),
            "relative": (self.magnitude, self.base_norm),
            "projection": (self.component, self.mean_length),
            "cosine": (self.component, self.magnitude),
        }
        value, unit = parts[scale]
        if value is None or unit is None:
            return None
        found = torch.where(unit > 0, value / unit, math.nan)
        return found.clamp(-1, 1) if scale == "cosine" else found


@dataclass(frozen=True, eq=False)
class View:
    """All panels of a figure on one scale."""

    scale: Scale
    """The scale."""
    panels: Mapping[str, Float[Tensor, "token layer"]]
    """Numbers of every token of the result, by name of the panel."""
    low: float
    """Lower end of the colours, as drawn."""
    high: float
    """Upper end of the colours, as drawn."""

    @property
    def signed(self) -> bool:
        """Whether numbers can be negative; they are then drawn as they are, others as their log10."""
        return self.scale in _SIGNED

    def pooled(self, name: str, rows: Tensor, tall: int, wide: int) -> Float[Tensor, "row column"]:
        """The numbers of some tokens of a panel: of each group of `tall` tokens and `wide` layers, the one furthest from 0."""
        return strongest(self.panels[name][rows], tall, wide)

    def drawn(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Numbers as a figure draws them: log10 at `low` or above, or signed numbers as they are."""
        return values if self.signed else values.clamp(min=10.0**self.low).log10()

    def axis(self, colours: tuple[list[str], list[str]] = (SEQUENTIAL, DIVERGING)) -> dict[str, object]:
        """The colour axis, with keys as in a relayout; `colours` are those of unsigned and of signed scales."""
        ticks = [self.high * share for share in (-1, -0.5, 0, 0.5, 1)] if self.signed else log_ticks(self.low, self.high)
        names = [f"{tick:g}".replace("-", "−") if self.signed else real_units(tick) for tick in ticks]
        if self.scale == "projection":
            names[0], names[-1] = f"≤ {names[0]}", f"≥ {names[-1]}"
        elif not self.signed and ticks[0] - self.low < 1e-6:
            names[0] = f"≤ {names[0]}"
        shades = colours[self.signed]
        return {
            "coloraxis.cmin": self.low,
            "coloraxis.cmax": self.high,
            "coloraxis.colorscale": [[index / (len(shades) - 1), shade] for index, shade in enumerate(shades)],
            "coloraxis.colorbar.title.text": _TITLES[self.scale],
            "coloraxis.colorbar.tickvals": ticks,
            "coloraxis.colorbar.ticktext": names,
        }


def of_comparison(result: Comparison, methods: Sequence[str] | None) -> dict[str, Push]:
    """The prompt and the replacements of a comparison, as panels in their order."""
    median = result.quantile(0.5)
    length = None if result.component is None else result.component.mean(dim=0)
    panels = {PROMPT: Push(result.magnitude, median, result.base_norm, result.component, length)}
    for name, trace in traces_of(result, methods).items():
        panels[name] = Push(trace.magnitude, median, result.base_norm, trace.component, length)
    return panels


def views_of(pushes: Mapping[str, Push], reference: Mapping[str, Push]) -> dict[Scale, View]:
    """Every scale on which all panels can be shown, with ends of its colours that depend on `reference` only.

    Args:
        pushes: The panels that are shown.
        reference: All panels of the result; the first sets the lower end, so that figures of one result share their colours.
    """
    views: dict[Scale, View] = {}
    for scale in get_args(Scale):
        panels = {name: values for name, push in pushes.items() if (values := push.on(scale)) is not None}
        every = [values for push in reference.values() if (values := push.on(scale)) is not None]
        if len(panels) == len(pushes) and len(every) == len(reference):
            views[scale] = View(scale, panels, *_ends(scale, every))
    return views


def chosen_scale(scale: Scale | None, views: Mapping[Scale, View], layers: int) -> Scale:
    """The scale that is shown first: the one asked for, or the default for that many layers.

    Raises:
        InputError: the result does not hold what the scale needs.
    """
    if scale is None:
        return "layer" if layers > MANY_LAYERS else "absolute"
    if scale not in views:
        raise InputError(
            "scale",
            repr(scale),
            f"a scale that this result has numbers for ({', '.join(map(repr, views))})",
            "Make the result again: this one was made by an older version, which did not keep norms and projections.",
        )
    return scale


def hover_of(views: Mapping[Scale, View]) -> str:
    """Lines of a hover text with the numbers of all scales, which are the last dimension of `customdata`."""
    return "<br>".join(_HOVER[scale].format(f"%{{customdata[{index}]:.3g}}") for index, scale in enumerate(views))


def colour_ends(every: Float[Tensor, "..."], reference: Float[Tensor, "..."]) -> tuple[float, float]:
    """Ends of a colour scale in log10 for any magnitudes; the lower end is set by those of `reference`."""
    every = every[every.isfinite() & (every > 0)]
    if not len(every):
        return 0.0, 1.0
    pushed = reference[reference > 0].sort().values
    high = math.log10(float(every.max()))
    weakest = float(pushed[len(pushed) // 100]) if len(pushed) else 10 ** (high - 2)
    low = max(math.floor(math.log10(weakest)), math.ceil(high - _DECADES))
    return (float(low), high) if high - low >= 0.5 else (high - 1, high)


def _ends(scale: Scale, every: list[Float[Tensor, "token layer"]]) -> tuple[float, float]:
    if scale == "cosine":
        return -1.0, 1.0
    if scale == "projection":
        sizes = every[0][every[0].isfinite()].abs().sort().values
        limit = float(sizes[math.ceil(_INNER * len(sizes)) - 1]) if len(sizes) else 1.0
        limit = _round_above(max(1.0, limit))
        return -limit, limit
    return colour_ends(torch.cat([values.flatten() for values in every]), every[0].flatten())


def _round_above(value: float) -> float:
    """The smallest of 1, 2, 4, 6, 8 × 10ⁿ that is at least `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return min(part * power for part in (1.0, 2.0, 4.0, 6.0, 8.0, 10.0) if part * power >= value * (1 - 1e-9))
