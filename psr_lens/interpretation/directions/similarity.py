"""Cosine similarities between the directions of several sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens.errors import InputError
from psr_lens.interpretation.directions.sources import Part, Source, directions_of
from psr_lens.models.hook_points import layer_of

_COLUMNS: Final = 12
"""Columns of the table in a notebook."""


@dataclass(frozen=True, eq=False, repr=False)
class Cosines:
    """Cosine similarities between the directions of several sources, hook point by hook point."""

    names: tuple[str, ...]
    """Name of the source of each row and column."""
    hooks: tuple[str, ...]
    """Hook point of each row and column."""
    layers: tuple[int | None, ...]
    """Layer of each; None outside of layers."""
    ranks: tuple[int, ...]
    """Number of directions of each."""
    matrix: Float[Tensor, "site site"]
    """Cosines. Between sites with several directions, the largest cosine between any two combinations of them, which is never
    negative. NaN where a direction is zero."""

    def __repr__(self) -> str:
        """Number of sites of each source."""
        counts = ", ".join(f"{name} ({self.names.count(name)})" for name in dict.fromkeys(self.names))
        return f"Cosines({counted(len(self.names), 'site')}; sources (sites): {counts})"

    def _repr_html_(self) -> str:
        labels = [f"{name}, {hook}" for name, hook in zip(self.names, self.hooks, strict=True)]
        rows = [(label, *values[:_COLUMNS]) for label, values in zip(labels, self.matrix.tolist(), strict=True)]
        left_out = f"; the first {_COLUMNS} columns" if len(labels) > _COLUMNS else ""
        return table(("site", *labels[:_COLUMNS]), rows, f"{self!r}{left_out}")


@checks_arguments
def cosines(sources: Mapping[str, Source], *, part: Part = "directions", layers: Sequence[int] | None = None) -> Cosines:
    """Cosine similarities between the directions of several sources, across layers, traits and methods.

    Args:
        sources: Names and sources, each as for `logit_lens`. Constant steering has directions like any other replacement.
        part: Of replacements, the directions `z` or the probes `w`.
        layers: Compare these layers only; all by default.

    Raises:
        InputError: there are no sources, or none acts at these layers.

    Example:
        >>> found = psr.cosines({"A-PSR": pirate, "CAA": caa}, layers=[2])
        >>> found
        Cosines(2 sites; sources (sites): A-PSR (1), CAA (1))
        >>> found.matrix.shape
        torch.Size([2, 2])
    """
    if not isinstance(sources, Mapping):
        raise InputError("sources", f"a {type(sources).__name__}", "a mapping", "Give each source a name: {'A-PSR': replacement}.")
    if not sources:
        raise InputError("sources", "none", "at least one name and replacement")
    entries = [
        (name, hook, vectors)
        for name, source in sources.items()
        for hook, vectors in directions_of(source, part).items()
        if layers is None or layer_of(hook) in layers
    ]
    if not entries:
        raise InputError("layers", list(layers or ()), "layers at which at least one of the sources acts")
    widths = sorted({vectors.shape[1] for _, _, vectors in entries})
    if len(widths) > 1:
        raise InputError("sources", f"directions {' and '.join(map(str, widths))} wide", "directions of the same d_model")
    spans = [_Span.of(vectors) for _, _, vectors in entries]
    matrix = torch.full((len(entries), len(entries)), float("nan"), dtype=torch.float32)
    for row, left in enumerate(spans):
        for column, right in enumerate(spans[: row + 1]):
            matrix[row, column] = matrix[column, row] = _cosine(left, right)
    return Cosines(
        tuple(name for name, _, _ in entries),
        tuple(hook for _, hook, _ in entries),
        tuple(layer_of(hook) for _, hook, _ in entries),
        tuple(len(vectors) for _, _, vectors in entries),
        matrix,
    )


@dataclass(frozen=True, eq=False)
class _Span:
    """The directions of one site."""

    basis: Float[Tensor, "rank width"]
    """Orthonormal rows; none if all directions are zero."""
    single: Float[Tensor, " width"] | None
    """The direction, if there is one alone."""

    @classmethod
    def of(cls, vectors: Float[Tensor, "direction width"]) -> _Span:
        """Decompose the directions once, however many others they are compared with."""
        wide = vectors.double()
        if not wide.any():
            return cls(wide[:0], None)
        if len(wide) == 1:
            return cls(wide / wide.norm(), wide[0])
        _, sizes, basis = torch.linalg.svd(wide, full_matrices=False)
        return cls(basis[sizes > 1e-6 * sizes[0]], None)


def _cosine(left: _Span, right: _Span) -> float:
    """Between two single directions, their cosine; otherwise the first canonical correlation of the two spans."""
    if not len(left.basis) or not len(right.basis):
        return float("nan")
    if left.single is not None and right.single is not None:
        return float(torch.nn.functional.cosine_similarity(left.single, right.single, dim=0))
    return float(torch.linalg.matrix_norm(left.basis @ right.basis.T, 2).clamp(max=1))
