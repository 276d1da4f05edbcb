"""`OnDisk`: `capture` into a store, shard by shard, in one process or several, resuming an interrupted run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from psr_lens._utils.arguments import check_fields, checks_arguments
from psr_lens._utils.distributed import rank_and_world_size, wait_for_all
from psr_lens.activations.paired_passes import PairedReading, Rows
from psr_lens.activations.store.format import MANIFEST_FILE, StoreDtype, StoreSpec
from psr_lens.activations.store.reader import Store
from psr_lens.activations.store.shards import SHARD_BYTES
from psr_lens.activations.store.writer import StoreWriter
from psr_lens.errors import InputError
from psr_lens.models import untold


@dataclass(frozen=True)
class OnDisk:
    """Destination of `capture` that writes differences into a folder, a `Store`.

    To resume an interrupted capture, call `capture` again with the same arguments: finished shards are kept. Under `accelerate launch`
    or `torchrun`, every process calls `capture` with the same arguments and writes its share of the shards; each waits for the others
    and gets the whole store.

    Example:
        >>> psr.capture(model, triplets[:4], "resid_post", to=psr.OnDisk("pirate-store", dtype="bfloat16"))
        Store(pirate-store, ... tokens at 6 hook points, bfloat16)
    """

    folder: str | Path
    """Folder of the store; created if it is missing."""
    dtype: StoreDtype | None = None
    """Data type of the stored numbers: `"float32"`, `"bfloat16"` or `"float16"`; None for that of the model."""
    groups: Sequence[str] | None = None
    """Group of each triplet, such as its trait, to be stored with it."""
    shard_bytes: int = SHARD_BYTES
    """Most bytes of a shard. A process holds one shard in memory at a time; if killed, it loses only that one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Anything else to record in the manifest, such as how the triplets were made; JSON only. Other settings make another store."""

    def __post_init__(self) -> None:
        """Refuse fields of another type."""
        check_fields(self)

    @checks_arguments
    def receive(self, reading: PairedReading) -> Store:
        """Write the missing shards of the store; called by `capture`.

        Raises:
            InputError: `groups` and the triplets differ in number, `dtype` is unknown, or a store is to be resumed with hooks on the model.
            ArtifactError: the folder holds another store, or the disk is full; finished shards are kept.

        Example:
            >>> store = psr.capture(model, triplets[:4], to=psr.OnDisk("pirate-store", groups=["pirate"] * 4))
            >>> store.groups
            ('pirate', 'pirate', 'pirate', 'pirate')
        """
        spec = StoreSpec.of(
            reading,
            dtype=cast(StoreDtype, str(reading.dtype).removeprefix("torch.")) if self.dtype is None else self.dtype,
            groups=self.groups,
            shard_bytes=self.shard_bytes,
            # It decides which triplets share a batch, and so the last bits of every number.
            settings={**self.settings, "token_budget": reading.token_budget},
        )
        rank, world_size = rank_and_world_size()
        begun = world_size == 1 and (Path(self.folder) / MANIFEST_FILE).exists()
        if begun and (reason := untold(reading.model)) is not None:
            raise InputError(
                "to",
                f"{self.folder}, a store that was begun before, with {reason}",
                "a new folder, since a store cannot tell whether its shards were captured with the same ones",
                "Undo that, or give another folder.",
            )
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
                    inside = [index - shard.triplets.start for index in indices]
                    reading.read(indices, rows.of(inside))
                    bar.update(sum(rows.counts[index] for index in inside))
                writer.write(number, rows.tensors)
                written += len(shard.rows) * spec.bytes_per_token
                bar.set_postfix_str(f"{written / 1e6:,.0f} MB written")
        wait_for_all()
        return Store.open(self.folder)
