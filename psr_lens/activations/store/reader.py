"""Reading a store: opened by its headers, read row by row, in order or shuffled for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from psr_lens._utils.html_table import table
from psr_lens.activations.store.files import RESUME, read_checksums, verify_file
from psr_lens.activations.store.format import StoreSpec, differences, read_spec, shard_layout, tokenizer_fingerprint
from psr_lens.activations.store.rows import ShardFiles, StoredRows
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, fingerprint, tokenizer_of
from psr_lens.prompts import TokenTable, Triplet

_BLOCK: Final = 256
_BUFFER_BATCHES: Final = 16
_MOST_LISTED: Final = 24


class Store:
    """Captured differences on disk; made by `Store.open`. `store[name]` is one hook point's, read when asked for.

    A store may be pickled and forked, each process opens its files anew.
    """

    def __init__(self, folder: Path, spec: StoreSpec, missing: tuple[int, ...]) -> None:
        """Use `Store.open`, which also checks the folder."""
        self.folder = folder
        self.spec = spec
        """All that is known of the store beside its numbers."""
        self.missing = missing
        """Numbers of the shards that were not there, or not whole by their headers, when a partial store was opened."""
        self._files = ShardFiles(folder, spec)

    @classmethod
    def open(cls, folder: str | Path, model: HookedModel | None = None, *, partial: bool = False) -> Store:
        """Open a store that `capture` wrote; of the shards only the headers are read.

        Args:
            folder: Where it is.
            model: The model that the differences are to be used with, to be sure that they are its own.
            partial: Open a store that is not finished too, to see what there is. Rows of a missing shard cannot be read.

        Raises:
            ArtifactError: no store, or one that is incomplete, truncated, damaged, of a newer format or from another model.
        """
        folder = Path(folder)
        spec = read_spec(folder)
        if model is not None:
            _check_model(folder, spec, model)
        absent = [shard for shard in spec.shards if not (folder / shard.file).exists()]
        if absent and not partial:
            raise ArtifactError(
                f"{folder}: is incomplete, {len(absent)} of {len(spec.shards)} shards are missing, the first is {absent[0].file}. {RESUME}"
            )
        missing = []
        for shard in spec.shards:
            try:
                read_checksums(folder / shard.file, shard_layout(spec, shard.number))
            except ArtifactError:
                if not partial:
                    raise
                missing.append(shard.number)
        return cls(folder, spec, tuple(missing))

    def __repr__(self) -> str:
        """Folder and sizes."""
        return f"Store({self.folder}, {len(self)} tokens at {len(self.names)} hook points, {self.spec.dtype})"

    def __len__(self) -> int:
        """Number of tokens, those of missing shards too."""
        return self.spec.offsets[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points, in the model's order."""
        return tuple(self.spec.hooks)

    @property
    def tokens(self) -> TokenTable:
        """What each row is."""
        return self.spec.tokens

    @property
    def triplets(self) -> list[Triplet]:
        """The triplets that were read, in the order of their rows."""
        return list(self.spec.triplets)

    @property
    def groups(self) -> tuple[str, ...]:
        """The trait, or another group, of every triplet."""
        return self.spec.groups

    def rows(self, triplet: int) -> slice:
        """Where the rows of one triplet lie: `store[name][store.rows(3)]` is `[token, …]`.

        Raises:
            InputError: there is no such triplet.
        """
        count = len(self.spec.triplets)
        if not -count <= triplet < count:
            raise InputError("triplet", triplet, f"one from 0 to {count - 1}")
        place = triplet % count
        return slice(self.spec.offsets[place], self.spec.offsets[place + 1])

    def __getitem__(self, name: str) -> StoredRows:
        """One hook point's differences, `[token, …]`, nothing of which is read yet.

        Raises:
            InputError: that hook point was not captured.
        """
        if name not in self.spec.hooks:
            raise InputError("hook", repr(name), f"one of those captured: {', '.join(self.names)}")
        return StoredRows(self._files, self.spec, name)

    def magnitude(self, name: str) -> Float[Tensor, " token"]:
        """‖Δ‖ of every token at one hook point, in float32 at least; read shard by shard."""
        norms = []
        for _, rows in self[name].shards():
            wide = rows.flatten(start_dim=1) if rows.ndim > 1 else rows[:, None]
            norms.append(torch.linalg.vector_norm(wide, dim=1, dtype=torch.float32))
        return torch.cat(norms)

    def batches(
        self, names: str | Sequence[str], tokens: int = 4096, *, shuffle: bool = False, seed: int = 0
    ) -> Iterator[dict[str, Float[Tensor, "token ..."]]]:
        """Every row once, in batches for training; the last may be smaller.

        Without `shuffle` rows come in their order. With it, blocks of 256 rows are put in a random order and filled into buffers of
        16 batches or more, within which the rows are shuffled: nearly as good as a full permutation, and read from few places of
        the disk at a time. The order depends on `seed`, `tokens` and the number of rows alone; give each epoch its own seed.

        Args:
            names: One hook point or several.
            tokens: Rows in a batch.
            shuffle: Whether to shuffle.
            seed: Of the shuffling.

        Raises:
            InputError: an unknown hook point, or less than one row in a batch.
            ArtifactError: a shard is missing or damaged.
        """
        chosen = self._chosen(names)  # not within the generator: what is wrong is said at once
        if tokens < 1:
            raise InputError("tokens", tokens, "at least 1")
        if shuffle:
            return ({name: rows[picked] for name, rows in chosen.items()} for picked in _shuffled(len(self), tokens, seed))
        starts = range(0, len(self), tokens)
        return ({name: rows[start : start + tokens] for name, rows in chosen.items()} for start in starts)

    def dataset(self, names: str | Sequence[str]) -> StoreDataset:
        """The rows of some hook points for a `DataLoader`, with any number of workers.

        Raises:
            InputError: an unknown hook point.
        """
        return StoreDataset(self._chosen(names))

    def verify(self) -> None:
        """Read everything and compare it with its checksums.

        Raises:
            ArtifactError: which files are missing or not what was written, all of them.
        """
        faults = []
        read_spec(self.folder)
        for shard in self.spec.shards:
            try:
                verify_file(self.folder / shard.file, shard_layout(self.spec, shard.number))
            except ArtifactError as error:
                faults.append(str(error))
        if faults:
            raise ArtifactError("\n".join(faults))

    def _repr_html_(self) -> str:
        rows = [(name, " × ".join(map(str, shape))) for name, shape in self.spec.hooks.items()]
        missing = f", {len(self.missing)} of {len(self.spec.shards)} shards missing" if self.missing else ""
        about = (
            f"{self.folder}: {self.spec.difference} Δ of {len(self):,} tokens as {self.spec.dtype}, span {self.spec.span}{missing}"
        )
        return table(("hook point", "shape of a token"), rows, about)

    def summary(self) -> StoreSummary:
        """What the store holds, and how much of it is there."""
        triplets, tokens = Counter[str](), Counter[str]()
        for group, count in zip(self.groups, self.spec.counts, strict=True):
            triplets[group] += 1
            tokens[group] += count
        return StoreSummary(
            self.folder,
            str(self.spec.model.get("model_name", "unknown")),
            len(self.spec.triplets),
            len(self),
            dict(self.spec.hooks),
            self.spec.dtype,
            self.spec.span,
            self.spec.difference,
            {group: (triplets[group], tokens[group]) for group in triplets},
            len(self.spec.shards),
            self.missing,
            sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file()),
            len(self) * self.spec.bytes_per_token,
        )

    def _chosen(self, names: str | Sequence[str]) -> dict[str, StoredRows]:
        chosen = [names] if isinstance(names, str) else list(names)
        if not chosen:
            raise InputError("names", "none", "at least one hook point")
        return {name: self[name] for name in chosen}


class StoreDataset(Dataset[dict[str, Tensor]]):
    """Rows of some hook points: item `i` is hook name to `[…]`; made by `store.dataset`."""

    def __init__(self, rows: Mapping[str, StoredRows]) -> None:
        """Use `store.dataset`."""
        self._rows = dict(rows)

    def __len__(self) -> int:
        """Number of tokens."""
        return len(next(iter(self._rows.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One row at each hook point, `[…]`."""
        return {name: rows[index] for name, rows in self._rows.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Several rows, read together; what a `DataLoader` calls."""
        read = {name: rows[list(indices)] for name, rows in self._rows.items()}
        return [{name: rows[place] for name, rows in read.items()} for place in range(len(indices))]


@dataclass(frozen=True)
class StoreSummary:
    """What a store holds; `print` shows it as a table."""

    folder: Path
    """Where it is."""
    model: str
    """Name of the model that was read."""
    triplets: int
    """How many triplets were read."""
    tokens: int
    """How many rows there are at each hook point."""
    hooks: Mapping[str, tuple[int, ...]]
    """Hook name to the shape of one token's activation there."""
    dtype: str
    """How numbers are stored."""
    span: str
    """Which tokens were captured."""
    difference: str
    """Which difference was taken."""
    groups: Mapping[str, tuple[int, int]]
    """Group to its numbers of triplets and tokens."""
    shards: int
    """How many shards the whole store has."""
    missing: tuple[int, ...]
    """Numbers of the shards that are not there yet, or damaged."""
    bytes_on_disk: int
    """Bytes of all files in the folder now."""
    bytes_of_tensors: int
    """Bytes of the differences once the store is complete."""

    @property
    def complete(self) -> bool:
        """Whether all shards are there, by their headers."""
        return not self.missing

    def __str__(self) -> str:
        """A readable table."""
        there = self.shards - len(self.missing)
        state = "complete" if self.complete else "incomplete"
        lines = [
            f"{self.folder}: {state}, {there} of {self.shards} shards",
            f"  model      {self.model}",
            f"  values     {self.difference} differences, span {self.span}, {self.dtype}",
            f"  rows       {self.tokens:,} tokens of {self.triplets:,} triplets",
            f"  on disk    {_size(self.bytes_on_disk)}; the differences take {_size(self.bytes_of_tensors)} when complete",
        ]
        groups = [(group or "(none)", f"{triplets:,}", f"{tokens:,}") for group, (triplets, tokens) in self.groups.items()]
        hooks = [(name, " × ".join(map(str, shape)) or "number") for name, shape in self.hooks.items()]
        return "\n".join(
            [*lines, "", *_table(("group", "triplets", "tokens"), groups), "", *_table(("hook point", "shape"), hooks)]
        )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    shown = [head, *rows[:_MOST_LISTED]]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in shown]
    return lines + ([f"  … and {len(rows) - _MOST_LISTED} more"] if len(rows) > _MOST_LISTED else [])


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _shuffled(count: int, tokens: int, seed: int) -> Iterator[Int64[Tensor, " row"]]:
    """Row numbers batch by batch; see `Store.batches`."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randperm(-(-count // _BLOCK), generator=generator) * _BLOCK
    rest = torch.empty(0, dtype=torch.long)
    for some in starts.split(-(-_BUFFER_BATCHES * tokens // _BLOCK)):
        rows = torch.cat([torch.arange(start, min(start + _BLOCK, count)) for start in some.tolist()])
        rest = torch.cat([rest, rows[torch.randperm(len(rows), generator=generator)]])
        full = len(rest) - len(rest) % tokens
        yield from rest[:full].split(tokens) if full else ()
        rest = rest[full:]
    if len(rest):
        yield rest


def _check_model(folder: Path, spec: StoreSpec, model: HookedModel) -> None:
    theirs: dict[str, Any] = fingerprint(model)
    if theirs != dict(spec.model):
        raise ArtifactError(
            f"{folder}: was captured from another model than this one, {differences(spec.model, theirs, 'in the store', 'of this model')}. "
            "Load the model that it was captured from, or capture anew; without `model` the store opens all the same."
        )
    if spec.tokenizer and tokenizer_fingerprint(tokenizer_of(model)) != spec.tokenizer:
        raise ArtifactError(
            f"{folder}: was captured with another tokenizer than this model's, so that token ids mean other words. "
            "Load the model with the tokenizer of then, or capture anew."
        )
