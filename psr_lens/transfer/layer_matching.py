"""Which layer of one model goes with which of another: by equal relative depth, or by what was measured between all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.errors import InputError

LayerPairs = tuple[tuple[int, int], ...]
"""A source layer for each target layer: `(source, target)`, ascending in the target and never descending in the source."""

_LEAST: Final = 1.0
"""An unknown score counts so much more below the lowest than any sum of others could make up for."""


@checks_arguments
def matched_by_depth(source_layers: int, target_layers: int) -> LayerPairs:
    """For each target layer, the source layer after which the same share of the model has been passed, as nearly as possible.

    Args:
        source_layers: Number of layers of the source.
        target_layers: Number of layers of the target.

    Returns:
        One pair of a source and a target layer for each target layer; both end with their last.

    Raises:
        InputError: a model without layers.

    Example:
        >>> psr.transfer.matched_by_depth(6, 4)
        ((1, 0), (2, 1), (4, 2), (5, 3))
    """
    for name, count in (("source_layers", source_layers), ("target_layers", target_layers)):
        if count < 1:
            raise InputError(name, count, "at least 1 layer")
    # In whole numbers, ⌊(t + 1)·S/T + ½⌋ − 1: halves are rounded up, not to even.
    halves = ((2 * (layer + 1) * source_layers + target_layers) // (2 * target_layers) for layer in range(target_layers))
    return tuple((max(0, int(half) - 1), layer) for layer, half in enumerate(halves))


@checks_arguments
def best_monotone_matching(scores: Float[Tensor, "source target"]) -> LayerPairs:
    """For each target layer a source layer, never an earlier one than for the target layer before it, with the largest sum of scores.

    Several target layers may share a source layer, and source layers may be left out. Of equally good matchings, the one with the
    earliest source layers is given.

    Args:
        scores: How well each source layer goes with each target layer; NaN is chosen only if nothing else can be.

    Returns:
        One pair of a source and a target layer for each target layer.

    Raises:
        InputError: no layers, or infinite scores.

    Example:
        >>> import torch
        >>> psr.transfer.best_monotone_matching(torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.0], [0.0, 0.7, 0.4]]))
        ((1, 0), (2, 1), (2, 2))
    """
    if scores.ndim != 2 or not scores.numel():
        raise InputError("scores", f"the shape {tuple(scores.shape)}", "one row per source layer and one column per target layer")
    if bool(scores.isinf().any()):
        raise InputError("scores", "infinite numbers", "finite numbers, or NaN where there is no score")
    known = scores.double().cpu()
    finite = known[~known.isnan()]
    least, spread = (float(finite.min()), float(finite.max() - finite.min())) if len(finite) else (0.0, 0.0)
    known = known.nan_to_num(nan=least - (spread + _LEAST) * known.shape[1])
    sums, came_from = known[:, 0], []
    for column in known.T[1:]:
        best, at = _running_best(sums)
        came_from.append(at)
        sums = best + column
    row = int(sums.argmax())
    rows = [row]
    for at in reversed(came_from):
        row = at[row]
        rows.append(row)
    return tuple(zip(reversed(rows), range(known.shape[1]), strict=True))


def checked_pairs(pairs: Sequence[tuple[int, int]], source_layers: int, target_layers: int) -> LayerPairs:
    """Pairs of layers that a user gave.

    Raises:
        InputError: none, layers that the models do not have, or a target layer twice.
    """
    found = tuple(sorted(((int(source), int(target)) for source, target in pairs), key=lambda pair: pair[1]))
    if not found:
        raise InputError("layers", "none", "at least one pair of a source and a target layer")
    for source, target in found:
        if not 0 <= source < source_layers or not 0 <= target < target_layers:
            raise InputError(
                "layers",
                f"({source}, {target})",
                f"a source layer from 0 to {source_layers - 1} and a target layer from 0 to {target_layers - 1}",
            )
    if len({target for _, target in found}) < len(found):
        raise InputError("layers", repr(list(found)), "one source layer for each target layer")
    return found


def _running_best(sums: Tensor) -> tuple[Tensor, list[int]]:
    """The largest of the sums up to each row, and the first row that has it."""
    best, rows = float(sums[0]), [0]
    for row in range(1, len(sums)):
        better = float(sums[row]) > best
        best = float(sums[row]) if better else best
        rows.append(row if better else rows[-1])
    return sums[torch.tensor(rows)], rows
