"""The disk as a destination of `capture`: shard by shard, in one process or several, and again from where a killed run left it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from psr_lens.passes import Reading, Rows
from psr_lens.store.format import SHARD_BYTES, StoreDtype, StoreSpec
from psr_lens.store.reader import Store
from psr_lens.store.writer import StoreWriter


@dataclass(frozen=True)
class OnDisk:
    """Write differences into a folder, to be read again as a `Store`.

    A capture that was cut off is resumed by calling `capture` again with the same arguments: shards that are whole are kept. Under
    `accelerate launch` or `torchrun` every process calls `capture` with the same arguments, reads its share of the shards and writes
    them; all wait for the last one, and each gets the whole store.
    """

    folder: str | Path
    """Where the store goes; made if it is not there."""
    dtype: StoreDtype | None = None
    """How numbers are stored: `"float32"`, `"bfloat16"`, `"float16"`; None takes the model's own type."""
    groups: Sequence[str] | None = None
    """The trait, or another group, of each triplet, to be kept beside it."""
    shard_bytes: int = SHARD_BYTES
    """Most bytes of a shard. A process holds one shard in memory at a time, and a killed one loses the shard that it was at."""

    def receive(self, reading: Reading) -> Store:
        """Write what is missing of the store.

        Raises:
            InputError: not one group a triplet, or a type that a store does not have.
            ArtifactError: the folder holds another store, or the disk is full; what was written is kept.
        """
        spec = StoreSpec.of(
            reading.model,
            reading.triplets,
            reading.shapes,
            dtype=cast(StoreDtype, str(reading.dtype).removeprefix("torch.")) if self.dtype is None else self.dtype,
            span=reading.span,
            difference=reading.difference,
            groups=self.groups,
            shard_bytes=self.shard_bytes,
            # It decides which triplets are read together, and so the last bits of every number.
            settings={"token_budget": reading.token_budget},
        )
        rank, world_size = _place()
        writer = StoreWriter.create(self.folder, spec, rank, world_size)
        missing = writer.missing()
        tokens = sum(len(spec.shards[number].rows) for number in writer.shards)
        with reading.bar(tokens) as bar:
            bar.update(tokens - sum(len(spec.shards[number].rows) for number in missing))
            written = 0
            for number in missing:
                shard = spec.shards[number]
                rows = Rows(reading.triplets[shard.triplets.start : shard.triplets.stop], reading.span, spec.torch_dtype)
                for indices in reading.batches(shard.triplets):
                    places = [index - shard.triplets.start for index in indices]
                    rows.put(places, reading.read(indices))
                    bar.update(sum(rows.counts[place] for place in places))
                writer.write(number, rows.tensors)
                written += len(shard.rows) * spec.bytes_per_token
                bar.set_postfix_str(f"{written / 1e6:,.0f} MB written")
        if world_size > 1:
            torch.distributed.barrier()
        return Store.open(self.folder)


def _place() -> tuple[int, int]:
    """Rank and number of processes, of a launcher's environment or of a process group that the caller has made."""
    if torch.distributed.is_available() and not torch.distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
