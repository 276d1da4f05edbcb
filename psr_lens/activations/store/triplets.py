"""The triplets of a store as a file, `triplets.jsonl`: one line of JSON each, with exact token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import xxhash

from psr_lens._utils.digests import digest_of
from psr_lens.activations.store.files import RESUME
from psr_lens.errors import ArtifactError
from psr_lens.prompts import PromptPair, Triplet
from psr_lens.prompts.chat_templates import ChatSettings

TRIPLETS_FILE: Final = "triplets.jsonl"


def triplet_id(triplet: Triplet) -> str:
    """xxh3_128 of the token ids of a triplet's two prompts and response; 32 hexadecimal digits."""
    return digest_of([list(triplet.pair.base_ids), list(triplet.pair.prompted_ids), list(triplet.response_ids)])


def triplets_digest(triplets: Sequence[Triplet]) -> str:
    """xxh3_128 of the ids of several triplets, in order; 32 hexadecimal digits."""
    return digest_of([triplet_id(triplet) for triplet in triplets])


def triplets_bytes(triplets: Sequence[Triplet]) -> bytes:
    """Content of the triplets' file: one line of JSON each."""
    return "".join(json.dumps(_triplet_json(triplet), sort_keys=True) + "\n" for triplet in triplets).encode()


def read_triplets(path: Path, checksum: str) -> tuple[Triplet, ...]:
    """Read the triplets of a store.

    Args:
        path: The file.
        checksum: Its xxh3_128 according to the manifest, in hexadecimal.

    Raises:
        ArtifactError: the file is missing, or differs from its checksum.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}). {RESUME}") from error
    found = xxhash.xxh3_128_hexdigest(content)
    if found != checksum:
        raise ArtifactError(f"{path}: is damaged, its checksum is {found} instead of {checksum} in manifest.json. {RESUME}")
    return tuple(_triplet_from(json.loads(line)) for line in content.decode().splitlines())


def _triplet_json(triplet: Triplet) -> dict[str, Any]:
    return pair_json(triplet.pair) | {
        "response_ids": list(triplet.response_ids),
        "response": triplet.response,
        "trait": float(triplet.trait),
        "coherence": float(triplet.coherence),
    }


def pair_json(pair: PromptPair) -> dict[str, Any]:
    """A pair as JSON content, with exact token ids; earlier turns and chat settings only if there are any."""
    chat = {name: value for name, value in asdict(pair.chat).items() if value != getattr(ChatSettings, name)}
    return {
        "question": pair.question,
        "instruction": pair.instruction,
        "base_ids": list(pair.base_ids),
        "steered_ids": list(pair.prompted_ids),
        "question_length": pair.question_length,
        **({"earlier": [list(turn) for turn in pair.earlier]} if pair.earlier else {}),
        **({"chat": chat} if chat else {}),
    }


def pair_from(read: Mapping[str, Any]) -> PromptPair:
    """The pair of the JSON content that `pair_json` made."""
    return PromptPair(
        read["question"],
        read["instruction"],
        tuple(read["base_ids"]),
        tuple(read["steered_ids"]),
        read["question_length"],
        tuple((role, content) for role, content in read.get("earlier", ())),
        ChatSettings(**read.get("chat", {})),
    )


def _triplet_from(read: Mapping[str, Any]) -> Triplet:
    return Triplet(pair_from(read), tuple(read["response_ids"]), read["response"], read["trait"], read["coherence"])
