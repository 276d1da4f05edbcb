"""One safetensors file of a store: its header, its checksums, and whether it is intact."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import xxhash

from psr_lens.errors import ArtifactError

RESUME: Final = "Call `capture` again with the same arguments and this folder: finished shards are kept, the others are written."

_CODES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32"}
_CHUNK: Final = 8 * 2**20
_LARGEST_HEADER: Final = 100 * 2**20  # safetensors reads none larger


@dataclass(frozen=True)
class Layout:
    """Layout of one safetensors file of a store; with the tensors' checksums it determines the header."""

    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    """Tensor name to data type and shape."""
    store: str
    """Digest of the store's spec."""
    part: str
    """Name of the file's role in the store, e.g. `shard 3`."""

    @property
    def sizes(self) -> dict[str, int]:
        """Tensor name to bytes, in the order of the file."""
        return {name: torch.Size(shape).numel() * dtype.itemsize for name, (dtype, shape) in sorted(self.tensors.items())}

    def header(self, checksums: Mapping[str, str]) -> bytes:
        """The bytes before the first tensor. Built by hand, because the safetensors library does not fix the order of metadata."""
        metadata = {"part": self.part, "store": self.store, **{f"xxh3_128 {name}": checksums[name] for name in self.sizes}}
        entries: dict[str, Any] = {"__metadata__": metadata}
        end = 0
        for name, size in self.sizes.items():
            dtype, shape = self.tensors[name]
            entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # aligns the tensors in a memory map
        return struct.pack("<Q", len(text)) + text


def read_checksums(path: Path, layout: Layout) -> dict[str, str]:
    """Check a file's header and size, reading only a few kB, and return the checksum of each tensor.

    Raises:
        ArtifactError: the file is missing, damaged, truncated, renamed, or belongs to another store.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(min(length, _LARGEST_HEADER))
        size = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}). {RESUME}") from error
    if len(text) < length:
        raise ArtifactError(f"{path}: is truncated or damaged, it ends within its header. {RESUME}")
    try:
        metadata = dict(json.loads(text)["__metadata__"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: is damaged, its header cannot be read. {RESUME}") from error
    if metadata.get("store") != layout.store:
        raise ArtifactError(
            f"{path}: does not belong to the store described by the manifest.json beside it. Delete the wrong one of the two. {RESUME}"
        )
    if metadata.get("part") != layout.part:
        raise ArtifactError(f"{path}: holds {metadata.get('part')!r} instead of {layout.part!r}; was it renamed? {RESUME}")
    checksums = {name: str(metadata.get(f"xxh3_128 {name}")) for name in layout.tensors}
    header = layout.header(checksums)
    if header[8:] != text:
        raise ArtifactError(f"{path}: is damaged, its header is not what was written. {RESUME}")
    expected = len(header) + sum(layout.sizes.values())
    if size != expected:
        raise ArtifactError(f"{path}: is truncated or damaged, it has {size:,} bytes instead of {expected:,}. {RESUME}")
    return checksums


def verify_file(path: Path, layout: Layout) -> None:
    """Check a whole file against its checksums, reading it in chunks.

    Raises:
        ArtifactError: as `read_checksums`, or a tensor differs from its checksum.
    """
    checksums = read_checksums(path, layout)
    try:
        with path.open("rb") as file:
            file.seek(len(layout.header(checksums)))
            for name, size in layout.sizes.items():
                digest = xxhash.xxh3_128()
                while size > 0 and (chunk := file.read(min(size, _CHUNK))):
                    digest.update(chunk)
                    size -= len(chunk)
                check_sum(path, name, digest.hexdigest(), checksums[name])
    except OSError as error:  # a failing disk
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}). {RESUME}") from error


def check_sum(path: Path, name: str, found: str, expected: str) -> None:
    """Refuse a tensor whose checksum differs from the recorded one.

    Raises:
        ArtifactError: the two differ.
    """
    if found != expected:
        raise ArtifactError(f"{path}: is damaged, the checksum of {name} is {found} instead of {expected}. {RESUME}")


def write_parts(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file from its parts, without joining them in memory."""
    with path.open("wb") as file:
        for part in parts:
            file.write(part)
