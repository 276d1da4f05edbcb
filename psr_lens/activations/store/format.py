"""The format of a store on disk: its spec, the plan of its shards, and its manifest.

A folder holds `manifest.json`, `triplets.jsonl`, `tokens.safetensors` and `shard-00000.safetensors` onwards. The manifest holds the spec,
a checksum of the triplets and a digest of itself; every safetensors file carries that digest, its own name and a checksum for each
tensor. So the spec and the numbers determine every byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

import torch
import xxhash
from safetensors.torch import load_file
from torch import Tensor

from psr_lens._utils.digests import digest_of
from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.activations.paired_passes import Difference, PairedReading
from psr_lens.activations.store.files import RESUME, Layout, verify_file
from psr_lens.activations.store.model_identity import as_recorded, source_identity
from psr_lens.activations.store.shards import SHARD_BYTES, ShardRange, plan_shards
from psr_lens.activations.store.triplets import TRIPLETS_FILE, read_triplets, triplet_id, triplets_bytes
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import model_identity, tokenizer_of
from psr_lens.models.identity_by_content import tokenizer_fingerprint
from psr_lens.prompts import Span, TokenTable, Triplet, token_table

StoreDtype = Literal["float32", "bfloat16", "float16"]
"""Data type of the stored numbers."""

FORMAT: Final = 3
"""Format 1 had the scores of the triplets from 0 to 1; 3 added the identity of the model, its weights included."""
_IDENTITY: Final = 3
"""From this format on, a manifest has the model's identity."""
MANIFEST_FILE: Final = "manifest.json"
TOKENS_FILE: Final = "tokens.safetensors"


@dataclass(frozen=True, eq=False)
class StoreSpec:
    """Everything about a store except its numbers; specs are equal if their digests are."""

    model: Mapping[str, Any]
    """Fingerprint of the model that was read."""
    tokenizer: str
    """Fingerprint of its tokenizer (`tokenizer_fingerprint`); empty if unknown."""
    hooks: Mapping[str, tuple[int, ...]]
    """Hook name to the shape of one token's activation, e.g. `(d_model,)` or `(head, d_head)`, in the model's order."""
    dtype: StoreDtype
    """Data type of the stored numbers."""
    span: Span
    """Which tokens were captured."""
    difference: Difference
    """Which difference was taken."""
    triplets: tuple[Triplet, ...]
    """The triplets that were read, in the order of their rows."""
    groups: tuple[str, ...]
    """Group of each triplet, such as its trait; an empty string for none."""
    tokens: TokenTable
    """What each row is."""
    shard_bytes: int = SHARD_BYTES
    """Most bytes of tensors in a shard; only a shard of a single triplet may be larger."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the capture was made; JSON only."""
    format: int = FORMAT
    """Version of the store's format; an older store keeps its own."""
    triplets_file: str = ""
    """xxh3_128 of `triplets.jsonl` as an older version wrote it; empty where it follows from the triplets."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """The model's class, data type, digests of weights, settings and config, and whether hooks were on it; empty in formats 1 and 2."""

    def __post_init__(self) -> None:
        """Refuse invalid and inconsistent fields."""
        _check_spec(self)

    @classmethod
    def of(
        cls,
        reading: PairedReading,
        *,
        dtype: StoreDtype = "float32",
        groups: Sequence[str] | None = None,
        shard_bytes: int = SHARD_BYTES,
        settings: Mapping[str, Any] | None = None,
    ) -> StoreSpec:
        """The spec of the store of a reading; see the fields for the other arguments.

        Raises:
            InputError: an argument is invalid, or `groups` and the triplets differ in number.
            ModelError: the model has no tokenizer.
        """
        return cls(
            model_identity(reading.model),
            tokenizer_fingerprint(tokenizer_of(reading.model)),
            {name: tuple(shape) for name, shape in reading.shapes.items()},
            dtype,
            reading.span,
            reading.difference,
            tuple(reading.triplets),
            ("",) * len(reading.triplets) if groups is None else tuple(groups),
            token_table(reading.model, reading.triplets, reading.span),
            shard_bytes,
            dict(settings or {}),
            identity=source_identity(reading.model),
        )

    def __eq__(self, other: object) -> bool:
        """Whether both describe the same store."""
        return isinstance(other, StoreSpec) and self.digest == other.digest

    def __hash__(self) -> int:
        """The same for equal specs."""
        return hash(self.digest)

    @property
    def torch_dtype(self) -> torch.dtype:
        """Data type of the stored tensors, as torch has it."""
        return cast(torch.dtype, getattr(torch, self.dtype))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Identity of each triplet (`triplet_id`)."""
        return tuple(map(triplet_id, self.triplets))

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of tokens of each triplet, at least one."""
        return tuple(triplet.pair.span_length(self.span) + len(triplet.response_ids) for triplet in self.triplets)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First row of each triplet, and finally the number of rows."""
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
        """The triplets and rows that each shard holds."""
        return plan_shards(self.counts, self.bytes_per_token, self.shard_bytes)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The manifest without its digest, as JSON content."""
        return _content(self)

    @cached_property
    def digest(self) -> str:
        """xxh3_128 of the content, in hexadecimal."""
        return digest_of(self.content)


def _check_spec(spec: StoreSpec) -> None:
    if not spec.hooks:
        raise InputError("hooks", "none", "at least one hook point")
    for name, shape in spec.hooks.items():
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise InputError(f"hooks[{name!r}]", shape, "the shape of one token's activation, whole numbers from 1 up")
    for argument, allowed in (("dtype", StoreDtype), ("span", Span), ("difference", Difference)):
        if getattr(spec, argument) not in get_args(allowed):
            raise InputError(argument, repr(getattr(spec, argument)), f"one of {', '.join(get_args(allowed))}")
    if not spec.triplets:
        raise InputError("triplets", "none", "at least one triplet")
    if len(spec.groups) != len(spec.triplets):
        raise InputError("groups", f"a list of {len(spec.groups)}", f"{len(spec.triplets)}, one group for each triplet")
    for index, (triplet, count) in enumerate(zip(spec.triplets, spec.counts, strict=True)):
        if count < 1:
            raise InputError(f"triplets[{index}]", "no token in the span", "at least one", "Drop it.")
        if not (math.isfinite(triplet.trait) and math.isfinite(triplet.coherence)):
            raise InputError(f"triplets[{index}]", f"scores {triplet.trait} and {triplet.coherence}", "finite numbers", "Drop it.")
    ids, owners, positions = _span_rows(spec)
    same = (spec.tokens.token_ids.tolist(), spec.tokens.triplet.tolist(), spec.tokens.position.tolist()) == (ids, owners, positions)
    if not same or len(spec.tokens) != len(ids):
        raise InputError(
            "tokens", f"{len(spec.tokens)} rows", f"the {len(ids)} rows of the triplets' span {spec.span}, in their order"
        )
    if spec.shard_bytes < 1:
        raise InputError("shard_bytes", spec.shard_bytes, "at least 1")
    for argument in ("model", "settings", "identity"):
        value = dict(getattr(spec, argument))
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise InputError(argument, value, "JSON content: strings, numbers, lists, dictionaries with string keys")


def _span_rows(spec: StoreSpec) -> tuple[list[int], list[int], list[int]]:
    """Token id, triplet index and position of every row, computed from the triplets."""
    ids: list[int] = []
    owners: list[int] = []
    positions: list[int] = []
    for index, triplet in enumerate(spec.triplets):
        kept = triplet.pair.span_length(spec.span)
        ids += [*triplet.pair.base_ids[len(triplet.pair.base_ids) - kept :], *triplet.response_ids]
        owners += [index] * (kept + len(triplet.response_ids))
        positions += range(-kept, len(triplet.response_ids))
    return ids, owners, positions


# --- the manifest -----------------------------------------------------------------------------------------------------------


def _content(spec: StoreSpec) -> dict[str, Any]:
    tokens = token_tensors(spec)
    return {
        "format": spec.format,
        "model": dict(spec.model),
        **({"identity": dict(spec.identity)} if spec.format >= _IDENTITY else {}),
        "tokenizer": spec.tokenizer,
        "hooks": [{"name": name, "shape": list(shape)} for name, shape in spec.hooks.items()],
        "dtype": spec.dtype,
        "span": spec.span,
        "difference": spec.difference,
        "triplets": [
            {"id": identity, "tokens": count, "group": group}
            for identity, count, group in zip(spec.ids, spec.counts, spec.groups, strict=True)
        ],
        "triplets_file": spec.triplets_file or xxhash.xxh3_128_hexdigest(triplets_bytes(spec.triplets, spec.format)),
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
    """Content of `tokens.safetensors`: token ids, positions and indices into the manifest's `vocabulary`, one per row, int32."""
    index_of = {text: index for index, text in enumerate(_vocabulary(spec.tokens))}
    return {
        "token_ids": spec.tokens.token_ids.to("cpu", torch.int32),
        "position": spec.tokens.position.to("cpu", torch.int32),
        "string": torch.tensor([index_of[text] for text in spec.tokens.strings], dtype=torch.int32),
    }


def manifest_bytes(spec: StoreSpec) -> bytes:
    """Content of the manifest file."""
    return _manifest_text(spec.digest, spec.content).encode()


def _manifest_text(digest: str | None, content: Mapping[str, Any]) -> str:
    return json.dumps({"digest": digest, **content}, indent=1, sort_keys=True) + "\n"


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest, check its digest and return the content without it.

    Raises:
        ArtifactError: the file is missing, is not JSON, has another format, or was changed after it was written.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(f"{path}: no such file, so the folder is not a store. Give the folder that `capture` wrote.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}). Delete this file. {RESUME}") from error
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise ArtifactError(f"{path}: format {found} is not supported; this version reads formats up to {FORMAT}. Update psr_lens.")
    if not isinstance(found, int) or found < 1:
        raise ArtifactError(f"{path}: has format {found!r}, which is not a store's. Give the folder that `capture` wrote.")
    digest = content.pop("digest", None)
    if digest != digest_of(content) or text != _manifest_text(digest, content):
        raise ArtifactError(f"{path}: was changed after it was written, its digest does not match. Delete this file. {RESUME}")
    return cast(dict[str, Any], content)


def read_spec(folder: Path) -> StoreSpec:
    """Read the spec of a store from its manifest, its triplets and its token file.

    Raises:
        ArtifactError: one of them is missing, damaged, of a newer format or from another store.
    """
    content = read_manifest(folder / MANIFEST_FILE)
    try:
        spec = _spec(folder, content)
        belongs = spec.content == content
    except ArtifactError:  # which is also a ValueError
        raise
    except (KeyError, IndexError, TypeError, ValueError):
        belongs = False
    if not belongs:
        raise ArtifactError(f"{folder / MANIFEST_FILE}: its parts do not belong together. Capture into another folder.")
    return spec


def in_format_of(folder: Path, found: Mapping[str, Any], spec: StoreSpec) -> StoreSpec:
    """A spec in the format of the store that an older version began in the folder, so that the two can be compared.

    Args:
        folder: Where the store is.
        found: The content of its manifest.
        spec: What is to be written there.
    """
    if found["format"] == spec.format:
        return replace(spec, identity=as_recorded(found["identity"], spec.identity)) if spec.format >= _IDENTITY else spec
    older = replace(spec, format=found["format"])
    try:
        held = read_triplets(folder / TRIPLETS_FILE, found["triplets_file"], found["format"])
    except ArtifactError:  # not there yet, or damaged; it is written again if all else agrees
        return older
    # Scores that were read from the folder may be written another way in their last digit.
    return replace(older, triplets_file=found["triplets_file"]) if held == spec.triplets else older


def _spec(folder: Path, content: Mapping[str, Any]) -> StoreSpec:
    path, counts = folder / TOKENS_FILE, [int(each["tokens"]) for each in content["triplets"]]
    verify_file(path, _tokens_layout(digest_of(content), sum(counts)))
    held = {name: tensor.long() for name, tensor in load_file(path).items()}
    strings = tuple(content["vocabulary"][index] for index in held["string"].tolist())
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return StoreSpec(
        content["model"],
        content["tokenizer"],
        {each["name"]: tuple(each["shape"]) for each in content["hooks"]},
        content["dtype"],
        content["span"],
        content["difference"],
        read_triplets(folder / TRIPLETS_FILE, content["triplets_file"], content["format"]),
        tuple(each["group"] for each in content["triplets"]),
        TokenTable(held["token_ids"], strings, owners, held["position"]),
        content["shard_bytes"],
        content["settings"],
        content["format"],
        content["triplets_file"] if content["format"] < FORMAT else "",
        content["identity"] if content["format"] >= _IDENTITY else {},
    )


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any], there: str = "there", here: str = "asked") -> str:
    """The differences between two manifests, in words: `dtype ("float32" there, "bfloat16" asked)`."""
    parts = []
    for key in sorted({*found, *wanted}):
        if found.get(key) == wanted.get(key):
            continue
        one, other = (json.dumps(content.get(key)) for content in (found, wanted))
        parts.append(f"{key} ({one} {there}, {other} {here})" if len(one) + len(other) < 160 else key)
    return ", ".join(parts)


# --- the files beside it ----------------------------------------------------------------------------------------------------


def shard_layout(spec: StoreSpec, number: int) -> Layout:
    """Layout of the file of one shard: a tensor `[token, …]` for each hook point."""
    shard = spec.shards[number]
    tensors = {name: (spec.torch_dtype, (len(shard.rows), *shape)) for name, shape in spec.hooks.items()}
    return Layout(tensors, spec.digest, f"shard {number}")


def tokens_layout(spec: StoreSpec) -> Layout:
    """Layout of the file of token ids, positions and strings."""
    return _tokens_layout(spec.digest, spec.offsets[-1])


def _tokens_layout(store: str, rows: int) -> Layout:
    return Layout(dict.fromkeys(("token_ids", "position", "string"), (torch.int32, (rows,))), store, "tokens")
