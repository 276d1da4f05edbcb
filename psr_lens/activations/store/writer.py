"""Writing a store: shard by shard, in any order, from any number of processes, and again from where a killed run left it."""

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

from psr_lens._utils.digests import raw_bytes
from psr_lens.activations.store.files import RESUME, Layout, verify_file, write_parts
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

    A file appears under its name only when it is whole: it is written beside it and renamed. The bytes follow from the spec and the
    tensors alone, so a capture that was killed and resumed ends with the same folder as one that was not. Nothing is synced to the
    disk shard by shard, for speed: after a power cut a shard may be damaged, and the next run finds that out and writes it again.
    """

    def __init__(self, folder: Path, spec: StoreSpec, rank: int, world_size: int) -> None:
        """Use `StoreWriter.create`, which also prepares the folder."""
        self.folder = folder
        self.spec = spec
        self.rank = rank
        self.shards = range(rank, len(spec.shards), world_size)
        """Numbers of the shards that are this writer's to write."""
        self._world_size = world_size
        self._whole: set[int] = set()

    @classmethod
    def create(cls, folder: str | Path, spec: StoreSpec, rank: int = 0, world_size: int = 1) -> StoreWriter:
        """Start a store, or resume the one that is in the folder; all ranks may call this at once.

        Args:
            folder: Where the store goes; made if it is not there.
            spec: What the store will hold.
            rank: Which of several processes this is; it writes the shards `rank`, `rank + world_size`, ….
            world_size: How many processes write into the folder.

        Raises:
            InputError: a rank outside of the world.
            ArtifactError: the folder holds another store or a damaged manifest, or cannot be written.
        """
        if not 0 <= rank < world_size:
            raise InputError("rank", rank, f"a number from 0 and below the world_size of {world_size}")
        writer = cls(Path(folder), spec, rank, world_size)
        try:
            writer.folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ArtifactError(f"{folder}: is a file, or lies under one. Give a folder, or a name that is not taken.") from error
        except OSError as error:
            raise _unwritable(writer.folder, error) from error
        writer._put_manifest()
        writer._clean()
        writer._put_triplets()
        writer._put_tokens()
        return writer

    def missing(self) -> list[int]:
        """Numbers of this writer's shards that are yet to be written.

        A shard that is truncated, damaged or of another store counts as missing. What an earlier run wrote is read once for that.
        """
        for number in self.shards:
            if number not in self._whole and _is_whole(self._path(number), shard_layout(self.spec, number)):
                self._whole.add(number)
        return [number for number in self.shards if number not in self._whole]

    def write(self, shard: int, tensors: Mapping[str, Float[Tensor, "token ..."]]) -> Path:
        """Write one shard, over one that is there.

        Args:
            shard: Its number, one of `self.shards`.
            tensors: Hook name to `[token, *shape]` in the spec's type, for every hook point; rows as in `spec.shards[shard]`.

        Returns:
            The file.

        Raises:
            InputError: a shard of another rank; missing or unknown hook points; another shape or type than in the spec.
            ArtifactError: the disk is full or the file cannot be written. Nothing of it is left then, and all other shards are kept.
        """
        if shard not in self.shards:
            raise InputError("shard", shard, f"one of this writer's (rank {self.rank} of {self._world_size}): {list(self.shards)}")
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
        """A name to write `path` under first, unlike any other process's; gone after, whatever happens."""
        temporary = path.with_name(f".{path.name}.rank{self.rank}-pid{os.getpid()}.tmp")
        try:
            yield temporary
        except OSError as error:
            raise _unwritable(path, error) from error
        finally:
            with suppress(OSError):  # it would hide the error above; the next run removes what is left
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
        """Remove what killed writers left of this writer's shards; another rank's are its own to remove, it may be writing them."""
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
    reason, remedy = ("the disk is full", "Make room") if full else (error.strerror or error, "Mend that")
    return ArtifactError(f"{path}: could not be written, {reason}. All shards written before are kept. {remedy}, then: {RESUME}")


def _put_first(temporary: Path, path: Path) -> None:
    """Give a file its name unless that is taken: of several ranks the first wins, and the others compare."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    except OSError:  # a file system without links; a rename is as atomic, only the last wins
        temporary.replace(path)


def _is_whole(path: Path, layout: Layout) -> bool:
    try:
        verify_file(path, layout)
    except ArtifactError:
        return False
    return True


def _check_tensors(layout: Layout, tensors: Mapping[str, Tensor]) -> None:
    if set(tensors) != set(layout.tensors):
        lacking, unknown = sorted(set(layout.tensors) - set(tensors)), sorted(set(tensors) - set(layout.tensors))
        raise InputError("tensors", f"a set that lacks {lacking} and adds {unknown}", "exactly the hook points of the spec")
    for name, (dtype, shape) in layout.tensors.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise InputError(f"tensors[{name!r}]", f"{tensor.dtype} {tuple(tensor.shape)}", f"{dtype} {shape} in {layout.part}")
