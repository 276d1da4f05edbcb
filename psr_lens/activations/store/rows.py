"""`StoredRows`: one hook point of a store, indexed like a tensor; rows are read from memory maps on demand."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, SupportsIndex, cast

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from psr_lens.activations.store.files import RESUME, read_checksums
from psr_lens.activations.store.format import StoreSpec, shard_layout
from psr_lens.errors import ArtifactError, InputError

_MOST_OPEN: Final = 4096  # a map holds no file descriptor, and Linux allows 65,530 maps per process


class RowError(InputError, IndexError):
    """An invalid index, or rows that a store does not have."""


class ShardFiles:
    """Memory maps of a store's shards, each opened on first use, and again in every process."""

    def __init__(self, folder: Path, spec: StoreSpec) -> None:
        """Open nothing yet."""
        self._folder = folder
        self._spec = spec
        self._handles: dict[int, Any] = {}
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the maps; another process opens its own."""
        return self.__dict__ | {"_handles": {}}

    def mapped(self, shard: int, name: str) -> Tensor:
        """One hook point's rows in one shard, `[token, …]`, memory-mapped: nothing is read until it is indexed.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        if self._process != os.getpid():  # forked
            self._handles, self._process = {}, os.getpid()
        handle = self._handles.get(shard)
        path = self._folder / self._spec.shards[shard].file
        try:
            if handle is None:
                read_checksums(path, shard_layout(self._spec, shard))
                if len(self._handles) >= _MOST_OPEN:
                    self._handles = {}
                handle = self._handles[shard] = safe_open(path, framework="pt")
            return cast(Tensor, handle.get_tensor(name))
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{path}: cannot be read ({error}). {RESUME}") from error


class StoredRows:
    """The rows of a store at one hook point, `[token, …]`; made by `store[hook]`.

    `rows[3]`, `rows[10:200:2]`, `rows[[5, 1, 5]]` and `rows[mask]` read these rows only and return a tensor with its own memory, in the
    stored type. Slices and negative numbers work as for a list.
    """

    def __init__(self, files: ShardFiles, spec: StoreSpec, name: str) -> None:
        """Use `store[hook]`."""
        self._files = files
        self._spec = spec
        self.name = name
        """Hook name."""
        self.shape: tuple[int, ...] = (spec.offsets[-1], *spec.hooks[name])
        """`(token, …)`."""
        self.dtype = spec.torch_dtype
        """Data type of the numbers."""
        self._starts = torch.tensor([shard.rows.start for shard in spec.shards])

    def __repr__(self) -> str:
        """Hook name, shape and data type."""
        return f"StoredRows({self.name}, shape={self.shape}, dtype={self.dtype})"

    def __len__(self) -> int:
        """Number of tokens."""
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Iterate over the rows; shards are read one at a time."""
        for _, rows in self.shards():
            yield from rows.clone()

    def __getitem__(self, index: SupportsIndex | slice | Sequence[int] | Sequence[bool] | Tensor | NDArray[Any]) -> Tensor:
        """Read some rows: `[…]` for a number, else `[row, …]`.

        Args:
            index: A row number, a slice, row numbers in any order, or a mask that is True for the rows to read.

        Raises:
            RowError: a row is out of range, a mask has another length, or `index` is none of the above; also an `IndexError`.
            ArtifactError: a shard that holds one of the rows is missing or damaged.
        """
        chosen = rows_of(index, len(self))
        if isinstance(chosen, int):
            return self._range(range(chosen, chosen + 1))[0]
        return self._range(chosen) if isinstance(chosen, range) else self._gather(chosen)

    def tensor(self) -> Tensor:
        """All rows as a tensor in memory, in the stored type."""
        return self[:]

    def numpy(self) -> NDArray[Any]:
        """All rows as an array in memory; bfloat16, which numpy lacks, becomes float32."""
        return as_numpy(self[:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """For `numpy.asarray(rows)`; as `numpy`."""
        if copy is False:
            raise InputError("copy", False, "None or True, because the array is read from disk")
        return self.numpy() if dtype is None else self.numpy().astype(dtype, copy=False)

    def shards(self) -> Iterator[tuple[range, Tensor]]:
        """Each shard's row numbers and its memory-mapped rows, which must not be changed."""
        for shard in self._spec.shards:
            yield shard.rows, self._files.mapped(shard.number, self.name)

    def _range(self, wanted: range) -> Tensor:
        if wanted.step < 0:
            return self._range(wanted[::-1]).flip(0)
        found = torch.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        if not wanted:
            return found
        one, other = self._owners(torch.tensor([wanted[0], wanted[-1]])).tolist()
        for shard in self._spec.shards[one : other + 1]:
            # How many of the wanted rows are before this shard, and before the next.
            first, last = (
                min(max(-((wanted.start - row) // wanted.step), 0), len(wanted)) for row in (shard.rows.start, shard.rows.stop)
            )
            if first < last:
                inside = slice(wanted[first] - shard.rows.start, wanted[last - 1] - shard.rows.start + 1, wanted.step)
                found[first:last] = self._files.mapped(shard.number, self.name)[inside]
        return found

    def _owners(self, wanted: Int64[Tensor, " row"]) -> Int64[Tensor, " row"]:
        """The shard of each row."""
        return torch.bucketize(wanted, self._starts, right=True) - 1

    def _gather(self, wanted: Int64[Tensor, " row"]) -> Tensor:
        owners, order = self._owners(wanted).sort()
        found = torch.empty((len(wanted), *self.shape[1:]), dtype=self.dtype)
        numbers, counts = owners.unique_consecutive(return_counts=True)
        for number, at in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
            found[at] = self._files.mapped(number, self.name)[wanted[at] - self._starts[number]]
        return found


def as_numpy(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array; bfloat16, which numpy lacks, becomes float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def rows_of(index: Any, count: int) -> int | range | Int64[Tensor, " row"]:
    """Resolve an index into `count` rows to row numbers counted from the start.

    Raises:
        RowError: a row is out of range, or `index` is not an index.
    """
    if isinstance(index, slice):
        return range(count)[index]
    if isinstance(index, Tensor | np.ndarray) and index.ndim == 0:
        index = index.item()
    if hasattr(index, "__index__") and not isinstance(index, bool | Tensor | np.ndarray):
        row = operator.index(index)
        return int(_counted(torch.tensor([row]), count)[0])
    rows = None
    if not isinstance(index, bool | tuple):  # a tuple would index several axes
        with suppress(TypeError, ValueError, RuntimeError):
            rows = torch.tensor(np.asarray(index.cpu() if isinstance(index, Tensor) else index))
    if rows is None or rows.ndim != 1 or (len(rows) and (rows.is_floating_point() or rows.is_complex())):
        raise RowError(
            "index", repr(index), "a row number, a slice, a list of row numbers, or a mask with True or False for every row"
        )
    if rows.dtype == torch.bool:
        if len(rows) != count:
            raise RowError("index", f"a mask of {len(rows)}", f"one True or False for each of {count} rows")
        return rows.nonzero().flatten()
    return _counted(rows.long(), count)


def _counted(rows: Int64[Tensor, " row"], count: int) -> Int64[Tensor, " row"]:
    outside = rows[(rows < -count) | (rows >= count)]
    if len(outside):
        raise RowError("index", f"row {int(outside[0])}", f"a row from {-count} to {count - 1} (the store has {count} tokens)")
    return torch.where(rows < 0, rows + count, rows)
