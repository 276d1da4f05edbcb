"""Heads as arguments: layer and index of each."""

from __future__ import annotations

from collections.abc import Sequence

from psr_lens._utils.numbers import is_whole
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
        pair = tuple(each)[:2] if isinstance(each, HeadReading) or (isinstance(each, tuple | list) and len(each) == 2) else ()
        if not pair or not all(map(is_whole, pair)) or not (0 <= pair[0] < depth and 0 <= pair[1] < width):
            raise InputError("heads", repr(each), f"a layer from 0 to {depth - 1} and a head from 0 to {width - 1}")
        found.setdefault(int(pair[0]), []).append(int(pair[1]))
    return found
