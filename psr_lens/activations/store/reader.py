"""Reading a store: `Store.open` checks the headers; rows are read on demand, in order or shuffled for training."""

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

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens.activations.hook_keys import HookKey, captured_name, is_hook_key
from psr_lens.activations.store.files import RESUME, read_checksums, verify_file
from psr_lens.activations.store.format import StoreSpec, read_spec, shard_layout
from psr_lens.activations.store.rows import ShardFiles, StoredRows
from psr_lens.activations.store.source_check import check_source
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel
from psr_lens.prompts import TokenTable, Triplet

_BLOCK: Final = 256
_BUFFER_BATCHES: Final = 16
_MOST_LISTED: Final = 24


class Store:
    """Captured differences on disk, read on demand; made by `Store.open`.

    A store may be pickled and forked; each process opens the files itself.

    Example:
        >>> store = psr.capture(model, triplets[:4], to=psr.OnDisk("pirate-store"))
        >>> store["resid_post", 3][:2].shape  # reads two rows
        torch.Size([2, 128])
    """

    def __init__(self, folder: Path, spec: StoreSpec, missing: tuple[int, ...]) -> None:
        """Use `Store.open`, which also checks the folder."""
        self.folder = folder
        self.spec = spec
        """Everything about the store except its numbers."""
        self.missing = missing
        """Numbers of the shards that were missing or incomplete when a partial store was opened."""
        self._files = ShardFiles(folder, spec)

    @classmethod
    @checks_arguments
    def open(cls, folder: str | Path, model: HookedModel | None = None, *, partial: bool = False) -> Store:
        """Open a store that `capture` wrote; only the headers of its shards are read.

        Args:
            folder: Folder of the store.
            model: The model to use the differences with; None to skip the check that they were captured from it. Compared are sizes, how
                the weights were processed, and the tokenizer; with a model of the same class and data type, also every byte of the
                weights, and, where they are recorded and torch, transformers and TransformerLens have the same versions, the settings and
                functions of the modules (an edited `eps` or `act_fn`, say). Hooks and the rest of the config are not.
            partial: Open an incomplete store too. Rows of a missing shard cannot be read.

        Raises:
            ArtifactError: the folder is not a store, or the store is incomplete, damaged, of a newer format or from another model.

        Example:
            >>> psr.capture(model, triplets[:4], to=psr.OnDisk("pirate-store"))
            Store(pirate-store, ... tokens at 6 hook points, float32)
            >>> psr.Store.open("pirate-store", model).spec.span
            'R'
        """
        folder = Path(folder)
        spec = read_spec(folder)
        if model is not None:
            check_source(folder, spec, model)
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
        """Folder, sizes and data type, in one line."""
        return f"Store({self.folder}, {counted(len(self), 'token')} at {counted(len(self.names), 'hook point')}, {self.spec.dtype})"

    def __len__(self) -> int:
        """Number of tokens, including those of missing shards."""
        return self.spec.offsets[-1]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the hook points, in the model's order."""
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
        """Group of each triplet, such as its trait; an empty string for none."""
        return self.spec.groups

    @checks_arguments
    def rows(self, triplet: int) -> slice:
        """The rows of one triplet, as a slice.

        Args:
            triplet: Index of the triplet; negative ones count from the end.

        Raises:
            InputError: the index is out of range.

        Example:
            >>> store = psr.capture(model, triplets[:4], to=psr.OnDisk("pirate-store"))
            >>> store["resid_post", 0][store.rows(3)].shape[0] == 1 + len(triplets[3].response_ids)
            True
        """
        count = len(self.spec.triplets)
        if not -count <= triplet < count:
            raise InputError("triplet", triplet, f"an index from 0 to {count - 1} (the store has {count} triplets)")
        index = triplet % count
        return slice(self.spec.offsets[index], self.spec.offsets[index + 1])

    def __getitem__(self, hook: HookKey) -> StoredRows:
        """Δ at one hook point, `[token, …]`: `store["resid_post", 3]`; nothing is read until it is indexed.

        Args:
            hook: A kind and a layer (negative layers count from the end), or a hook name.

        Raises:
            InputError: that hook point was not captured.
        """
        name = captured_name(hook, self.spec.hooks, self.spec.model.get("n_layers"))
        return StoredRows(self._files, self.spec, name)

    @checks_arguments
    def magnitude(self, hook: HookKey) -> Float[Tensor, " token"]:
        """‖Δ‖ of each token at one hook point, in float32; read shard by shard.

        Args:
            hook: A kind and a layer, or a hook name; as for `store[…]`.

        Raises:
            InputError: that hook point was not captured.
            ArtifactError: a shard is missing or damaged.

        Example:
            >>> store = psr.capture(model, triplets[:4], to=psr.OnDisk("pirate-store"))
            >>> len(store.magnitude(("resid_post", -1))) == len(store)
            True
        """
        norms = []
        for _, rows in self[hook].shards():
            wide = rows.flatten(start_dim=1) if rows.ndim > 1 else rows[:, None]
            norms.append(torch.linalg.vector_norm(wide, dim=1, dtype=torch.float32))
        return torch.cat(norms)

    @checks_arguments
    def batches(
        self, hooks: HookKey | Sequence[HookKey], tokens: int = 4096, *, shuffle: bool = False, seed: int = 0
    ) -> Iterator[dict[str, Float[Tensor, "token ..."]]]:
        """Iterate over all rows once, in batches for training; the last batch may be smaller.

        With `shuffle`, blocks of 256 rows are put in random order and collected into buffers of at least 16 batches, within which the
        rows are shuffled: almost as good as a full permutation, with few random reads from disk. The order depends only on `seed`,
        `tokens` and the number of rows; give each epoch its own seed.

        Args:
            hooks: One hook point or several, each as for `store[…]`.
            tokens: Rows per batch.
            shuffle: Whether to shuffle the rows.
            seed: Seed of the shuffling.

        Returns:
            Batches: hook name to `[token, …]`.

        Raises:
            InputError: a hook point was not captured, or `tokens` is below 1.
            ArtifactError: a shard is missing or damaged.

        Example:
            >>> store = psr.capture(model, triplets[:4], to=psr.OnDisk("pirate-store"))
            >>> batch = next(store.batches(("resid_post", 3), tokens=8, shuffle=True))
            >>> batch["blocks.3.hook_resid_post"].shape
            torch.Size([8, 128])
        """
        chosen = self._chosen(hooks)  # not inside the generator, so that errors are raised at once
        if tokens < 1:
            raise InputError("tokens", tokens, "at least 1")
        if shuffle:
            return ({name: rows[picked] for name, rows in chosen.items()} for picked in _shuffled(len(self), tokens, seed))
        starts = range(0, len(self), tokens)
        return ({name: rows[start : start + tokens] for name, rows in chosen.items()} for start in starts)

    @checks_arguments
    def dataset(self, hooks: HookKey | Sequence[HookKey]) -> StoreDataset:
        """The rows of some hook points as a dataset for a `DataLoader`, with any number of workers.

        Args:
            hooks: One hook point or several, each as for `store[…]`.

        Raises:
            InputError: a hook point was not captured.

        Example:
            >>> store = psr.capture(model, triplets[:4], to=psr.OnDisk("pirate-store"))
            >>> store.dataset(("resid_post", 3))[0]["blocks.3.hook_resid_post"].shape
            torch.Size([128])
        """
        return StoreDataset(self._chosen(hooks))

    def verify(self) -> None:
        """Read all files and compare them with their checksums.

        Raises:
            ArtifactError: files are missing or damaged; the message lists all of them.

        Example:
            >>> psr.capture(model, triplets[:4], to=psr.OnDisk("pirate-store")).verify()
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
        """What the store holds, and how much of it has been written.

        Example:
            >>> summary = psr.capture(model, triplets[:4], to=psr.OnDisk("pirate-store")).summary()
            >>> summary.triplets, summary.shards, summary.complete
            (4, 1, True)
        """
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

    def _chosen(self, hooks: Any) -> dict[str, StoredRows]:
        chosen = [self[hook] for hook in ([hooks] if is_hook_key(hooks) else hooks)]
        if not chosen:
            raise InputError("hooks", "none", "at least one hook point")
        return {rows.name: rows for rows in chosen}


class StoreDataset(Dataset[dict[str, Tensor]]):
    """Rows of some hook points; item `i` maps hook name to `[…]`. Made by `store.dataset`."""

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
        """Several rows, read together; called by a `DataLoader`."""
        read = {name: rows[list(indices)] for name, rows in self._rows.items()}
        return [{name: rows[index] for name, rows in read.items()} for index in range(len(indices))]


@dataclass(frozen=True, repr=False)
class StoreSummary:
    """What a store holds; `print` shows a table."""

    folder: Path
    """Folder of the store."""
    model: str
    """Name of the model that was read."""
    triplets: int
    """Number of triplets."""
    tokens: int
    """Number of tokens: rows at each hook point."""
    hooks: Mapping[str, tuple[int, ...]]
    """Hook name to the shape of one token's activation."""
    dtype: str
    """Data type of the stored numbers."""
    span: str
    """Which tokens were captured."""
    difference: str
    """Which difference was taken."""
    groups: Mapping[str, tuple[int, int]]
    """Group to its numbers of triplets and tokens."""
    shards: int
    """Number of shards of the complete store."""
    missing: tuple[int, ...]
    """Numbers of the shards that are missing or damaged."""
    bytes_on_disk: int
    """Bytes of all files that are in the folder now."""
    bytes_of_tensors: int
    """Bytes of the differences once the store is complete."""

    @property
    def complete(self) -> bool:
        """Whether all shards exist, according to their headers."""
        return not self.missing

    def __repr__(self) -> str:
        """Folder, tokens, triplets, hook points and shards, on one line."""
        size = f"{counted(self.tokens, 'token')} of {counted(self.triplets, 'triplet')} at {counted(len(self.hooks), 'hook point')}"
        return f"StoreSummary({self.folder}, {size}, {self.shards - len(self.missing)} of {counted(self.shards, 'shard')})"

    def __str__(self) -> str:
        """A table."""
        there = self.shards - len(self.missing)
        state = "complete" if self.complete else "incomplete"
        lines = [
            f"{self.folder}: {state}, {there} of {counted(self.shards, 'shard')}",
            f"  model      {self.model}",
            f"  values     {self.difference} differences, span {self.span}, {self.dtype}",
            f"  rows       {counted(self.tokens, 'token')} of {counted(self.triplets, 'triplet')}",
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
