"""How the triplets of a store are cut into shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SHARD_BYTES: Final = 256 * 2**20
"""Size that a shard stays within unless the caller says otherwise; only a single triplet may be larger."""


@dataclass(frozen=True)
class ShardRange:
    """Which consecutive triplets, and so which rows, one shard holds."""

    number: int
    """Place of the shard in the store."""
    triplets: range
    """Indices of its triplets."""
    rows: range
    """Rows of the store that it holds, one a token."""

    @property
    def file(self) -> str:
        """Name of its file in the folder."""
        return f"shard-{self.number:05d}.safetensors"


def plan_shards(counts: Sequence[int], bytes_per_token: int, shard_bytes: int) -> tuple[ShardRange, ...]:
    """Cut triplets into consecutive shards, each as full as `shard_bytes` allows and with one triplet at least.

    Nothing else enters, neither a batch budget nor a number of processes, so every run of a capture makes the same shards.

    Args:
        counts: Tokens of every triplet.
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
