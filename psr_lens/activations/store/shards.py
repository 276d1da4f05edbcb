"""How the triplets of a store are divided into shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SHARD_BYTES: Final = 256 * 2**20
"""Default for the most bytes of a shard; only a shard of a single triplet may be larger."""


@dataclass(frozen=True)
class ShardRange:
    """The consecutive triplets, and so the rows, that one shard holds."""

    number: int
    """Index of the shard in the store."""
    triplets: range
    """Indices of its triplets."""
    rows: range
    """Rows of the store that it holds, one per token."""

    @property
    def file(self) -> str:
        """Name of its file."""
        return f"shard-{self.number:05d}.safetensors"


def plan_shards(counts: Sequence[int], bytes_per_token: int, shard_bytes: int) -> tuple[ShardRange, ...]:
    """Divide triplets into consecutive shards, each as full as `shard_bytes` allows, with at least one triplet.

    The result depends on the arguments only, not on batches or processes, so every run of a capture makes the same shards.

    Args:
        counts: Number of tokens of each triplet.
        bytes_per_token: Bytes of one row at all hook points together.
        shard_bytes: Most bytes of tensors in a shard.
    """
    shards: list[ShardRange] = []
    first = row = rows = 0
    for index, count in enumerate(counts):
        if index > first and (rows + count) * bytes_per_token > shard_bytes:
            shards.append(ShardRange(len(shards), range(first, index), range(row, row + rows)))
            first, row, rows = index, row + rows, 0
        rows += count
    if len(counts) > first:
        shards.append(ShardRange(len(shards), range(first, len(counts)), range(row, row + rows)))
    return tuple(shards)
