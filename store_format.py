"""What a store of captured differences is on disk: its spec and manifest, the plan of its shards, and the bytes of one file.

A folder holds `manifest.json`, `tokens.safetensors` and `shard-00000.safetensors` onwards. The manifest is the spec and a digest of it;
every other file carries that digest, its own name and a checksum for each tensor. So all bytes follow from the spec and the numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import torch
import xxhash
from safetensors.torch import load_file
from torch import Tensor

from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, fingerprint, tokenizer_of
from psr_lens.prompts import Span, TokenTable, Triplet, token_table

Difference = Literal["accumulated", "local"]
"""`accumulated`: Δ with everything before the hook point changed too; `local`: only what this point's own component adds."""

StoreDtype = Literal["float32", "bfloat16", "float16"]
"""How numbers are stored."""

FORMAT: Final = 1
SHARD_BYTES: Final = 256 * 2**20
"""Size that a shard stays within unless the caller says otherwise; only a single triplet may be larger."""
MANIFEST_FILE: Final = "manifest.json"
TOKENS_FILE: Final = "tokens.safetensors"
RESUME: Final = "Call `capture` again with the same arguments and this folder: whole shards are kept, the others are written."

_CODES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32"}
_CHUNK: Final = 8 * 2**20
_LARGEST_HEADER: Final = 100 * 2**20  # safetensors reads none larger


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


@dataclass(frozen=True, eq=False)
class StoreSpec:
    """All that is known of a store before a number is in it; two specs are equal where their digests are."""

    model: Mapping[str, Any]
    """Fingerprint of the model that was read."""
    tokenizer: str
    """Fingerprint of its tokenizer (`tokenizer_fingerprint`), empty if unknown."""
    hooks: Mapping[str, tuple[int, ...]]
    """Hook name to the shape of one token's activation there, e.g. `(d_model,)` or `(head, d_head)`, in the model's order."""
    dtype: StoreDtype
    """How numbers are stored."""
    span: Span
    """Which tokens were captured."""
    difference: Difference
    """Which difference was taken."""
    triplets: tuple[str, ...]
    """Identity of every triplet (`triplet_id`), in the order of their rows."""
    counts: tuple[int, ...]
    """Tokens of every triplet, at least one each."""
    groups: tuple[str, ...]
    """The trait, or another group, of every triplet; empty strings where there is none."""
    tokens: TokenTable
    """What each row is."""
    shard_bytes: int = SHARD_BYTES
    """Most bytes of tensors in a shard, unless a single triplet has more."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the capture was made; JSON only."""
    format: int = FORMAT
    """Version of the store's format."""

    def __post_init__(self) -> None:
        """Refuse parts that cannot belong together."""
        _check_spec(self)

    @classmethod
    def of(
        cls,
        model: HookedModel,
        triplets: Sequence[Triplet],
        hooks: Mapping[str, Sequence[int]],
        *,
        dtype: StoreDtype = "float32",
        span: Span = "R",
        difference: Difference = "accumulated",
        groups: Sequence[str] | None = None,
        shard_bytes: int = SHARD_BYTES,
        settings: Mapping[str, Any] | None = None,
    ) -> StoreSpec:
        """The spec of a capture of `triplets` on `model`; see the fields for the arguments.

        Raises:
            InputError: parts that cannot belong together, e.g. as many groups as triplets are not given.
            ModelError: the model has no tokenizer.
        """
        return cls(
            fingerprint(model),
            tokenizer_fingerprint(tokenizer_of(model)),
            {name: tuple(shape) for name, shape in hooks.items()},
            dtype,
            span,
            difference,
            tuple(map(triplet_id, triplets)),
            tuple(triplet.pair.span_length(span) + len(triplet.response_ids) for triplet in triplets),
            ("",) * len(triplets) if groups is None else tuple(groups),
            token_table(model, triplets, span),
            shard_bytes,
            dict(settings or {}),
        )

    def __eq__(self, other: object) -> bool:
        """Whether both describe the same store."""
        return isinstance(other, StoreSpec) and self.digest == other.digest

    def __hash__(self) -> int:
        """The same for equal specs."""
        return hash(self.digest)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the stored tensors."""
        return cast(torch.dtype, getattr(torch, self.dtype))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First row of every triplet, and at the end the number of rows."""
        starts = [0]
        for count in self.counts:
            starts.append(starts[-1] + count)
        return tuple(starts)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one row at all hook points together."""
        numbers = sum(torch.Size(shape).numel() for shape in self.hooks.values())
        return numbers * self.torch_dtype.itemsize

    @cached_property
    def shards(self) -> tuple[ShardRange, ...]:
        """Which triplets and rows each shard holds."""
        return plan_shards(self.counts, self.bytes_per_token, self.shard_bytes)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The manifest but for its digest, as JSON has it."""
        return _content(self)

    @cached_property
    def digest(self) -> str:
        """xxh3_128 of the content, in hexadecimal."""
        return _digest(self.content)


def _check_spec(spec: StoreSpec) -> None:
    if not spec.hooks:
        raise InputError("hooks", "none", "at least one hook point")
    for name, shape in spec.hooks.items():
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise InputError(f"hooks[{name!r}]", shape, "the shape of one token's activation, of whole numbers from 1")
    for argument, allowed in (("dtype", StoreDtype), ("span", Span), ("difference", Difference)):
        if getattr(spec, argument) not in get_args(allowed):
            raise InputError(argument, repr(getattr(spec, argument)), f"one of {', '.join(get_args(allowed))}")
    if not spec.triplets:
        raise InputError("triplets", "none", "at least one triplet")
    for argument in ("counts", "groups"):
        if len(getattr(spec, argument)) != len(spec.triplets):
            raise InputError(argument, f"{len(getattr(spec, argument))} of them", f"one for each of {len(spec.triplets)} triplets")
    if min(spec.counts) < 1:
        raise InputError("counts", min(spec.counts), "at least one token a triplet")
    owners = torch.arange(len(spec.counts)).repeat_interleave(torch.tensor(spec.counts))
    if not torch.equal(spec.tokens.triplet.cpu(), owners):
        raise InputError("tokens", f"{len(spec.tokens)} rows", "the rows of the triplets in their order, as many as `counts` says")
    if spec.shard_bytes < 1:
        raise InputError("shard_bytes", spec.shard_bytes, "at least 1")
    for argument in ("model", "settings"):
        value = dict(getattr(spec, argument))
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise InputError(argument, value, "what JSON can hold: texts, numbers, lists, dictionaries with text keys")


# --- identities -------------------------------------------------------------------------------------------------------------


def triplet_id(triplet: Triplet) -> str:
    """xxh3_128 of a triplet's two prompts and its response, all as token ids; 32 hexadecimal digits."""
    return _digest([list(triplet.pair.base_ids), list(triplet.pair.steered_ids), list(triplet.response_ids)])


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """xxh3_128 of what decides which ids a text gets; 32 hexadecimal digits.

    Padding, truncation and the special tokens set around a text are left out: they are settings of a call, which TransformerLens
    changes as it works, and prompts here place their special tokens themselves.
    """
    if getattr(tokenizer, "is_fast", False):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        return _digest({key: value for key, value in content.items() if key not in ("padding", "truncation", "post_processor")})
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return _digest([sorted(tokenizer.get_vocab().items()), sorted(special.items())])


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


# --- the manifest -----------------------------------------------------------------------------------------------------------


def _content(spec: StoreSpec) -> dict[str, Any]:
    tokens = token_tensors(spec)
    return {
        "format": spec.format,
        "model": dict(spec.model),
        "tokenizer": spec.tokenizer,
        "hooks": [{"name": name, "shape": list(shape)} for name, shape in spec.hooks.items()],
        "dtype": spec.dtype,
        "span": spec.span,
        "difference": spec.difference,
        "triplets": [
            {"id": identity, "tokens": count, "group": group}
            for identity, count, group in zip(spec.triplets, spec.counts, spec.groups, strict=True)
        ],
        "tokens": {name: xxhash.xxh3_128_hexdigest(raw_bytes(tensor)) for name, tensor in tokens.items()},
        "vocabulary": _vocabulary(spec.tokens),
        "shard_bytes": spec.shard_bytes,
        "shards": [
            {"file": shard.file, "first_triplet": shard.triplets.start, "triplets": len(shard.triplets), "tokens": len(shard.rows)}
            for shard in spec.shards
        ],
        "settings": dict(spec.settings),
    }


def _vocabulary(tokens: TokenTable) -> list[str]:
    return sorted(set(tokens.strings))


def token_tensors(spec: StoreSpec) -> dict[str, Tensor]:
    """What `tokens.safetensors` holds: ids, positions and places in the manifest's `vocabulary`, one a row, int32."""
    place = {text: index for index, text in enumerate(_vocabulary(spec.tokens))}
    return {
        "token_ids": spec.tokens.token_ids.to("cpu", torch.int32),
        "position": spec.tokens.position.to("cpu", torch.int32),
        "string": torch.tensor([place[text] for text in spec.tokens.strings], dtype=torch.int32),
    }


def manifest_bytes(spec: StoreSpec) -> bytes:
    """The manifest's file."""
    return (json.dumps({"digest": spec.digest, **spec.content}, indent=1, sort_keys=True) + "\n").encode()


def read_manifest(path: Path) -> dict[str, Any]:
    """The content of a manifest, its digest checked and taken off.

    Raises:
        ArtifactError: no such file, not JSON, of another format, or changed since it was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: no such file, so this is no store. Give the folder that `capture` wrote.") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}). Delete this file. {RESUME}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise ArtifactError(f"{path}: has format {found}, this version reads up to {FORMAT}. Update psr_lens.")
    if found != FORMAT:
        raise ArtifactError(f"{path}: has format {found!r}, which is none of a store's. Give the folder that `capture` wrote.")
    if content.pop("digest", None) != _digest(content):
        raise ArtifactError(f"{path}: is not what was written, by its own digest. Delete this file. {RESUME}")
    return cast(dict[str, Any], content)


def read_spec(folder: Path) -> StoreSpec:
    """The spec of a store, from its manifest and its token file.

    Raises:
        ArtifactError: either of them is missing, damaged, of a newer format or of another store.
    """
    content = read_manifest(folder / MANIFEST_FILE)
    path = folder / TOKENS_FILE
    counts = tuple(int(each["tokens"]) for each in content["triplets"])
    verify_file(path, _tokens_layout(_digest(content), sum(counts)))
    held = {name: tensor.long() for name, tensor in load_file(path).items()}
    strings = tuple(content["vocabulary"][place] for place in held["string"].tolist())
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    spec = StoreSpec(
        content["model"],
        content["tokenizer"],
        {each["name"]: tuple(each["shape"]) for each in content["hooks"]},
        content["dtype"],
        content["span"],
        content["difference"],
        tuple(each["id"] for each in content["triplets"]),
        counts,
        tuple(each["group"] for each in content["triplets"]),
        TokenTable(held["token_ids"], strings, owners, held["position"]),
        content["shard_bytes"],
        content["settings"],
    )
    if spec.content != content:
        raise ArtifactError(f"{folder / MANIFEST_FILE}: its parts do not belong together. Capture into another folder.")
    return spec


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between two manifests' contents, in words."""
    parts = []
    for key in wanted:
        if found.get(key) == wanted[key]:
            continue
        there, here = (json.dumps(content.get(key)) for content in (found, wanted))
        parts.append(f"{key} ({there} there, {here} asked)" if len(there) + len(here) < 160 else key)
    return ", ".join(parts)


# --- one file ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """One safetensors file of a store, from which its header follows once the tensors' checksums are known."""

    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    """Name to type and shape."""
    store: str
    """Digest of the store's spec."""
    part: str
    """Which file of the store it is."""

    @property
    def sizes(self) -> dict[str, int]:
        """Name to bytes, in the order in which the tensors lie in the file."""
        return {name: torch.Size(shape).numel() * dtype.itemsize for name, (dtype, shape) in sorted(self.tensors.items())}

    def header(self, checksums: Mapping[str, str]) -> bytes:
        """All that stands before the first tensor's bytes. Written by hand: the library's own order of metadata is not fixed."""
        metadata = {"part": self.part, "store": self.store, **{f"xxh3_128 {name}": checksums[name] for name in self.sizes}}
        entries: dict[str, Any] = {"__metadata__": metadata}
        end = 0
        for name, size in self.sizes.items():
            dtype, shape = self.tensors[name]
            entries[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors are aligned in a memory map
        return struct.pack("<Q", len(text)) + text


def shard_layout(spec: StoreSpec, number: int) -> Layout:
    """The file of one shard: a tensor `[token, …]` for every hook point."""
    shard = spec.shards[number]
    tensors = {name: (spec.torch_dtype, (len(shard.rows), *shape)) for name, shape in spec.hooks.items()}
    return Layout(tensors, spec.digest, f"shard {number}")


def tokens_layout(spec: StoreSpec) -> Layout:
    """The file of the token ids, positions and strings."""
    return _tokens_layout(spec.digest, spec.offsets[-1])


def _tokens_layout(store: str, rows: int) -> Layout:
    return Layout({name: (torch.int32, (rows,)) for name in ("token_ids", "position", "string")}, store, "tokens")


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's own memory (numpy knows no bfloat16, so it passes as uint8); copied only from a GPU or if not contiguous."""
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def read_checksums(path: Path, layout: Layout) -> dict[str, str]:
    """Check a file's header and size, a few kB read, and give the checksum of each tensor.

    Raises:
        ArtifactError: the file is missing, damaged or truncated, or belongs to another place.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            text = file.read(min(length, _LARGEST_HEADER))
        size = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}). {RESUME}") from error
    if len(text) < length:
        raise ArtifactError(f"{path}: is truncated or damaged, it ends within its header. {RESUME}")
    try:
        metadata = dict(json.loads(text)["__metadata__"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: is damaged, its header cannot be read. {RESUME}") from error
    if metadata.get("store") != layout.store:
        raise ArtifactError(f"{path}: belongs to another store than the manifest beside it. {RESUME}")
    if metadata.get("part") != layout.part:
        raise ArtifactError(f"{path}: holds {metadata.get('part')!r} and not {layout.part!r}; was it renamed? {RESUME}")
    checksums = {name: str(metadata.get(f"xxh3_128 {name}")) for name in layout.tensors}
    header = layout.header(checksums)
    if header[8:] != text:
        raise ArtifactError(f"{path}: is damaged, its header is not what was written. {RESUME}")
    expected = len(header) + sum(layout.sizes.values())
    if size != expected:
        raise ArtifactError(f"{path}: is truncated or damaged, it has {size:,} bytes instead of {expected:,}. {RESUME}")
    return checksums


def verify_file(path: Path, layout: Layout) -> None:
    """Check a whole file against its checksums, in little memory.

    Raises:
        ArtifactError: what `read_checksums` raises, or a tensor is not what was written.
    """
    checksums = read_checksums(path, layout)
    with path.open("rb") as file:
        file.seek(len(layout.header(checksums)))
        for name, size in layout.sizes.items():
            digest = xxhash.xxh3_128()
            while size > 0 and (chunk := file.read(min(size, _CHUNK))):
                digest.update(chunk)
                size -= len(chunk)
            check_sum(path, name, digest.hexdigest(), checksums[name])


def check_sum(path: Path, name: str, found: str, expected: str) -> None:
    """Refuse a tensor with another checksum than it was written with.

    Raises:
        ArtifactError: the two differ.
    """
    if found != expected:
        raise ArtifactError(f"{path}: is damaged, the checksum of {name} is {found} instead of {expected}. {RESUME}")
