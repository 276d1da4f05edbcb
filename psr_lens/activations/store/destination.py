"""The disk as a destination of `capture`: shard by shard, in one process or several, and again from where a killed run left it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from psr_lens._utils.distributed import rank_and_world_size, wait_for_all
from psr_lens.activations.paired_passes import Reading, Rows
from psr_lens.activations.store.format import StoreDtype, StoreSpec
from psr_lens.activations.store.reader import Store
from psr_lens.activations.store.shards import SHARD_BYTES
from psr_lens.activations.store.writer import StoreWriter


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
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the triplets came about, or whatever else is to stand in the manifest; JSON only. Other settings make another store."""

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
            settings={**self.settings, "token_budget": reading.token_budget},
        )
        rank, world_size = rank_and_world_size()
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
                    reading.read(indices, rows.of(places))
                    bar.update(sum(rows.counts[place] for place in places))
                writer.write(number, rows.tensors)
                written += len(shard.rows) * spec.bytes_per_token
                bar.set_postfix_str(f"{written / 1e6:,.0f} MB written")
        wait_for_all()
        return Store.open(self.folder)
