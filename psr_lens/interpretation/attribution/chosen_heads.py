"""Heads as arguments: layer and index of each."""

from __future__ import annotations

from collections.abc import Sequence

from psr_lens.errors import InputError
from psr_lens.interpretation.attribution.result import HeadReading
from psr_lens.models import HookedModel


def heads_by_layer(model: HookedModel, heads: Sequence[tuple[int, int] | HeadReading]) -> dict[int, list[int]]:
    """Layers to the heads chosen there, in the order in which they were given.

    Raises:
        InputError: a head out of range.
    """
    depth, width = int(model.cfg.n_layers), int(model.cfg.n_heads)
    found: dict[int, list[int]] = {}
    for each in heads:
        if not isinstance(each, tuple | list) or len(each) < 2 or not (0 <= each[0] < depth and 0 <= each[1] < width):
            raise InputError("heads", repr(each), f"a layer from 0 to {depth - 1} and a head from 0 to {width - 1}")
        found.setdefault(int(each[0]), []).append(int(each[1]))
    return found
