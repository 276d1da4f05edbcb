"""The tokens that directions promote and suppress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Unpack

import numpy as np
import plotly.graph_objects as go

from psr_lens._utils.numbers import is_whole
from psr_lens._utils.short_text import shortened
from psr_lens.errors import InputError
from psr_lens.interpretation.directions import LensRow, LogitLens
from psr_lens.models.hook_points import layer_of
from psr_lens.plots.look import Look, draws, room
from psr_lens.plots.share_heatmap import BAR
from psr_lens.plots.sliders_and_buttons import steps_of, switched
from psr_lens.plots.style import DIVERGING, MUTED, SMALL, colour_bar, escaped, fitted, label_room, labelled_rows, titled
from psr_lens.prompts.token_text import readable

MAX_ROWS: Final = 48
"""Most rows; of more directions, a slider shows those of one layer at a time, and of one layer's, the first."""
MAX_COLUMNS: Final = 6
"""Most promoted, and most suppressed, tokens per row."""

_ROW: Final = 24
_HEADER: Final = 18
"""Height of the words above the columns, in pixels."""
_BESIDE: Final = 12
_GAP: Final = 6
"""Pixels beside the table, and between words of neighbouring cells."""


@draws
def logit_lens(lens: LogitLens | Mapping[str, LogitLens], *, columns: int = 3, **look: Unpack[Look]) -> go.Figure:
    """Tokens that each direction promotes, left, and suppresses, right, coloured by their logits; of several lenses, what each promotes.

    Lenses stand side by side, matched by hook point and direction. Up to 48 directions are rows of one table; for more, a slider selects
    among the layers.

    Args:
        lens: Result of `psr.logit_lens` or `psr.jacobian_lens`, or several by name: of the prompt's singular directions and of a
            replacement, of directions and of probes, or the two kinds of lens.
        columns: Number of promoted, and of suppressed, tokens, at most 6; the most promoted is leftmost, the most suppressed rightmost.
        look: `width`, `font_size` and `theme`; see `Look`.

    Returns:
        A figure with one heatmap (for each layer), a row per direction; `customdata` holds the tokens as the vocabulary spells them, `z`
        the logits. Where a lens has no such direction, cells are empty.

    Raises:
        InputError: not a `LogitLens` or a mapping of names to them, one without directions, or `columns` out of range.

    Example:
        >>> lens = psr.logit_lens(model, pirate)
        >>> psr.plots.logit_lens(lens, columns=2).data[0].z.shape
        (24, 4)
        >>> later = psr.jacobian_lens(model, triplets[:4], pirate)
        >>> psr.plots.logit_lens({"logit lens": lens, "Jacobian lens": later}).layout.xaxis.ticktext
        ('logit lens', 'Jacobian lens')
    """
    lenses = {"": lens} if isinstance(lens, LogitLens) else dict(lens)
    if not lenses or not all(each.rows for each in lenses.values()):
        raise InputError("lens", "no directions", "at least one")
    if not is_whole(columns) or not 1 <= columns <= MAX_COLUMNS:
        raise InputError("columns", repr(columns), f"1 to {MAX_COLUMNS}")
    table = _Table(lenses, min(columns, *(len(row.promoted) for each in lenses.values() for row in each.rows)))
    keys = table.keys
    if len(keys) <= MAX_ROWS:
        return table.drawn(keys)
    layers = list(dict.fromkeys(layer_of(hook) for hook, _ in keys))
    middle = len(layers) // 2
    steps = steps_of(len(layers), middle)
    figures = [table.drawn([key for key in keys if layer_of(key[0]) == layers[index]]) for index in steps]
    labels = ["–" if layers[index] is None else str(layers[index]) for index in steps]
    return switched(figures, labels, "layer", steps.index(middle))


Key = tuple[str, int]
"""Hook point and index of a direction."""
Cells = tuple[tuple[str, ...], list[float]]
"""Tokens and their logits."""


@dataclass(frozen=True)
class _Table:
    """Some lenses, of whose directions figures are drawn on colours that are the same for all."""

    lenses: Mapping[str, LogitLens]
    """The lenses by name; one alone is called ""."""
    columns: int
    """Number of promoted, and of suppressed, tokens."""

    @property
    def keys(self) -> list[Key]:
        """The directions of all lenses, in the order of the layers."""
        found = dict.fromkeys((row.hook, row.direction) for lens in self.lenses.values() for row in lens.rows)
        return sorted(found, key=lambda key: -1 if (layer := layer_of(key[0])) is None else layer)

    def _groups(self) -> dict[str, dict[Key, Cells]]:
        """The groups of columns: of one lens, what it promotes and what it suppresses; of several, what each promotes."""

        def promoted(row: LensRow) -> Cells:
            return row.promoted[: self.columns], row.promoted_logits[: self.columns].tolist()

        def suppressed(row: LensRow) -> Cells:
            return row.suppressed[: self.columns][::-1], row.suppressed_logits[: self.columns].tolist()[::-1]

        if len(self.lenses) > 1:
            return {name: {(row.hook, row.direction): promoted(row) for row in lens.rows} for name, lens in self.lenses.items()}
        (lens,) = self.lenses.values()
        ends = {"promotes": promoted, "suppresses": suppressed}
        return {name: {(row.hook, row.direction): end(row) for row in lens.rows} for name, end in ends.items()}

    def drawn(self, some: Sequence[Key]) -> go.Figure:
        """The figure of some directions."""
        keys, groups, columns = some[:MAX_ROWS], self._groups(), self.columns
        count = columns * len(groups)
        empty: Cells = (("",) * columns, [float("nan")] * columns)
        spelled = [[token for group in groups.values() for token in group.get(key, empty)[0]] for key in keys]
        values = [[logit for group in groups.values() for logit in group.get(key, empty)[1]] for key in keys]
        rows = [row for lens in self.lenses.values() for row in lens.rows]
        alphabet = [token for row in rows for token in (*row.promoted, *row.suppressed)]
        labels = self._labels(keys)
        left = label_room(labels)
        cell = (room() - left - _BESIDE) / count - _GAP
        shown = [[escaped(fitted(text, cell)) for text in readable(line, alphabet)] for line in spelled]
        limit = max(float(part.abs().max()) for row in rows for part in (row.promoted_logits, row.suppressed_logits)) or 1.0
        plot = len(keys) * _ROW
        figure = go.Figure(
            go.Heatmap(
                z=np.array(values),
                x=list(range(count)),
                y=list(range(len(keys))),
                text=shown,
                texttemplate="%{text}",
                textfont={"size": SMALL},
                customdata=[[escaped(token) for token in line] for line in spelled],
                colorscale=DIVERGING,
                zmin=-limit,
                zmax=limit,
                xgap=2,
                ygap=2,
                hoverongaps=False,
                hovertemplate="%{y}<br>%{customdata}<br>%{z:+.2f} logits<extra></extra>",
                colorbar=colour_bar("logit", (BAR + _HEADER) / plot, nticks=5),
            )
        )
        figure.update_yaxes(labelled_rows(labels, automargin=True))
        group_room = columns * (cell + _GAP)
        names = [escaped(fitted(shortened(name, 32), group_room)) for name in groups]
        figure.update_xaxes(
            tickmode="array",
            tickvals=[columns * place + (columns - 1) / 2 for place in range(len(groups))],
            ticktext=names,
            tickangle=0,
            side="top",
            showgrid=False,
        )
        for place in range(1, len(groups)):
            figure.add_vline(x=columns * place - 0.5, line={"color": MUTED, "width": 1})
        note = f"The first {len(keys)} of {len(some)} directions." if len(keys) < len(some) else ""
        if len(self.lenses) > 1:
            note = f"Tokens that are promoted most. {note}".strip()
        top = 54 + BAR + _HEADER  # a slider over layers stands right above it
        return titled(figure, self._title(), plot=plot, top=top, bottom=12, left=left, note=note)

    def _title(self) -> str:
        """What is read, as far as it is the same for all lenses."""
        parts, kinds = ({getattr(lens, field) for lens in self.lenses.values()} for field in ("part", "lens"))
        what = "Directions and probes" if len(parts) > 1 else "Directions" if parts == {"directions"} else "Probes"
        through = "two lenses" if len(kinds) > 1 else "the logit lens" if kinds == {"logit"} else "the Jacobian lens"
        return f"{what} through {through}"

    def _labels(self, keys: Sequence[Key]) -> list[str]:
        every = self.keys
        hooks = [hook for hook, _ in every]
        mixed = len({hook.rsplit(".", 1)[-1] for hook in hooks}) > 1
        labels = []
        for hook, direction in keys:
            layer = layer_of(hook)
            where = hook if layer is None else f"layer {layer}"
            kind = f" {hook.rsplit('.', 1)[-1].removeprefix('hook_')}" if mixed and layer is not None else ""
            number = f' <span style="color:{MUTED}">#{direction}</span>' if hooks.count(hook) > 1 else ""
            labels.append(escaped(f"{where}{kind}") + number)
        return labels
