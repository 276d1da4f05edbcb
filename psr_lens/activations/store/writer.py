"""Writing a store: shard by shard, in any order, from any number of processes, resuming an interrupted run."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import xxhash
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.activations.store.files import Layout, verify_file, write_parts
from psr_lens.activations.store.format import (
    MANIFEST_FILE,
    TOKENS_FILE,
    StoreSpec,
    differences,
    in_format_of,
    manifest_bytes,
    read_manifest,
    shard_layout,
    token_tensors,
    tokens_layout,
)
from psr_lens.activations.store.triplets import TRIPLETS_FILE, read_triplets, triplets_bytes
from psr_lens.errors import ArtifactError, InputError

_TEMPORARY: Final = re.compile(r"\.(?P<file>.+)\.rank(?P<rank>\d+)-pid\d+\.tmp")


class StoreWriter:
    """Writes the shards of one store, or one rank's share of them; made by `StoreWriter.create`.

    Each file is written under a temporary name and then renamed, so it is complete under its own name. The spec and the tensors alone
    determine the bytes, so a resumed capture ends with the same folder as an uninterrupted one. For speed, shards are not synced to
    disk: after a power failure a shard may be damaged, and the next run detects that and writes it again.
    """

    def __init__(self, folder: Path, spec: StoreSpec, rank: int, world_size: int) -> None:
        """Use `StoreWriter.create`, which also prepares the folder."""
        self.folder = folder
        self.spec = spec
        self.rank = rank
        self.shards = range(rank, len(spec.shards), world_size)
        """Numbers of the shards that this writer writes."""
        self._world_size = world_size
        self._whole: set[int] = set()

    @classmethod
    def create(cls, folder: str | Path, spec: StoreSpec, rank: int = 0, world_size: int = 1) -> StoreWriter:
        """Start a store, or resume an existing one; all ranks may call this at once.

        Args:
            folder: Folder of the store; created if it is missing.
            spec: Spec of the store.
            rank: Rank of this process; it writes the shards `rank`, `rank + world_size`, ….
            world_size: Number of processes that write into the folder.

        Raises:
            InputError: `rank` is not below `world_size`.
            ArtifactError: the folder holds another store or a damaged manifest, or cannot be written.
        """
        if not 0 <= rank < world_size:
            raise InputError("rank", rank, f"a number from 0 up, below the world_size of {world_size}")
        writer = cls(Path(folder), spec, rank, world_size)
        try:
            writer.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ArtifactError(f"{folder}: is a file, or lies under one. Give a folder, or an unused name.") from error
        except OSError as error:
            raise _unwritable(writer.folder, error) from error
        writer._put_manifest()
        writer._clean()
        writer._put_triplets()
        writer._put_tokens()
        return writer

    def missing(self) -> list[int]:
        """Numbers of this writer's shards that are still to be written.

        A shard that is truncated, damaged or from another store counts as missing. To find out, existing shards are read once.
        """
        for number in self.shards:
            if number not in self._whole and _is_whole(self._path(number), shard_layout(self.spec, number)):
                self._whole.add(number)
        return [number for number in self.shards if number not in self._whole]

    def write(self, shard: int, tensors: Mapping[str, Float[Tensor, "token ..."]]) -> Path:
        """Write one shard, replacing an existing one.

        Args:
            shard: Its number, one of `self.shards`.
            tensors: Hook name to `[token, *shape]` in the spec's data type, for each hook point; rows as in `spec.shards[shard]`.

        Returns:
            Path of the file.

        Raises:
            InputError: the shard is another rank's, hook points are missing or unknown, or a shape or data type differs from the spec.
            ArtifactError: the disk is full or the file cannot be written. No partial file is left, and all other shards are kept.
        """
        if shard not in self.shards:
            raise InputError(
                "shard", shard, f"one of this writer's shards (rank {self.rank} of {self._world_size}): {list(self.shards)}"
            )
        layout = shard_layout(self.spec, shard)
        _check_tensors(layout, tensors)
        path = self._path(shard)
        self._save(path, layout, tensors)
        self._whole.add(shard)
        return path

    def _path(self, shard: int) -> Path:
        return self.folder / self.spec.shards[shard].file

    def _save(self, path: Path, layout: Layout, tensors: Mapping[str, Tensor]) -> None:
        views = {name: raw_bytes(tensors[name]) for name in layout.sizes}
        header = layout.header({name: xxhash.xxh3_128_hexdigest(view) for name, view in views.items()})
        with self._temporary(path) as temporary:
            write_parts(temporary, [header, *views.values()])
            temporary.replace(path)

    @contextmanager
    def _temporary(self, path: Path) -> Iterator[Path]:
        """A temporary name for `path`, different in each process; the file is removed in any case."""
        temporary = path.with_name(f".{path.name}.rank{self.rank}-pid{os.getpid()}.tmp")
        try:
            yield temporary
        except OSError as error:
            raise _unwritable(path, error) from error
        finally:
            with suppress(OSError):  # it would hide the error above; the next run removes the file
                temporary.unlink(missing_ok=True)

    def _put_manifest(self) -> None:
        path = self.folder / MANIFEST_FILE
        if not path.exists():
            with self._temporary(path) as temporary:
                write_parts(temporary, [manifest_bytes(self.spec)])
                _put_first(temporary, path)
        found = read_manifest(path)
        self.spec = in_format_of(self.folder, found, self.spec)
        if found != self.spec.content:
            raise ArtifactError(
                f"{path}: the folder holds another store, which differs in {differences(found, self.spec.content)}. "
                "Give another folder, or delete this one."
            )

    def _put_triplets(self) -> None:
        path = self.folder / TRIPLETS_FILE
        try:
            read_triplets(path, self.spec.content["triplets_file"], self.spec.format)
        except ArtifactError:
            with self._temporary(path) as temporary:
                write_parts(temporary, [triplets_bytes(self.spec.triplets, self.spec.format)])
                temporary.replace(path)

    def _put_tokens(self) -> None:
        path, layout = self.folder / TOKENS_FILE, tokens_layout(self.spec)
        if not _is_whole(path, layout):
            self._save(path, layout, token_tensors(self.spec))

    def _clean(self) -> None:
        """Remove temporary files of this writer's shards that killed runs left; another rank may be writing its own."""
        ours = {self.spec.shards[number].file for number in self.shards}
        for path in self.folder.iterdir():
            match = _TEMPORARY.fullmatch(path.name)
            if match is None:
                continue
            shared = (
                match["file"] in (MANIFEST_FILE, TRIPLETS_FILE, TOKENS_FILE) and int(match["rank"]) % self._world_size == self.rank
            )
            if shared or match["file"] in ours:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> ArtifactError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason, remedy = ("the disk is full", "Free some space") if full else (error.strerror or error, "Fix this")
    return ArtifactError(f"{path}: could not be written, {reason}. {remedy} and call `capture` again; finished shards are kept.")


def _put_first(temporary: Path, path: Path) -> None:
    """Give a file its name unless that exists: the first of several ranks wins, and the others compare."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links: a rename is atomic too, but the last rank wins
        temporary.replace(path)


def _is_whole(path: Path, layout: Layout) -> bool:
    try:
        verify_file(path, layout)
    except ArtifactError:
        return False
    return True


def _check_tensors(layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    lacking, unknown = sorted(set(layout.tensors) - set(tensors)), sorted(set(tensors) - set(layout.tensors))
    faults = [f"{fault} {', '.join(names)}" for fault, names in (("lacks", lacking), ("adds", unknown)) if names]
    if faults:
        raise InputError("tensors", f"a mapping that {' and '.join(faults)}", "exactly the hook points of the spec")
    for name, (dtype, shape) in layout.tensors.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise InputError(f"tensors[{name!r}]", f"{tensor.dtype} {tuple(tensor.shape)}", f"{dtype} {shape} in {layout.part}")
