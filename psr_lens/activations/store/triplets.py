"""The triplets of a store as a file, `triplets.jsonl`: one line of JSON each, with exact token ids."""

from __future__ import annotations

import json
import math
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
_UNIT_SCORES: Final = 1
"""Up to this format of a store, the scores in the file are from 0 to 1; from the next on, they are 0–100 as everywhere else."""


def triplet_id(triplet: Triplet) -> str:
    """xxh3_128 of the token ids of a triplet's two prompts and response; 32 hexadecimal digits."""
    return digest_of([list(triplet.pair.base_ids), list(triplet.pair.prompted_ids), list(triplet.response_ids)])


def triplets_digest(triplets: Sequence[Triplet]) -> str:
    """xxh3_128 of the ids of several triplets, in order; 32 hexadecimal digits."""
    return digest_of([triplet_id(triplet) for triplet in triplets])


def triplets_bytes(triplets: Sequence[Triplet], store_format: int) -> bytes:
    """Content of the triplets' file in a format of the store: one line of JSON each."""
    return "".join(json.dumps(_triplet_json(triplet, store_format), sort_keys=True) + "\n" for triplet in triplets).encode()


def read_triplets(path: Path, checksum: str, store_format: int) -> tuple[Triplet, ...]:
    """Read the triplets of a store.

    Args:
        path: The file.
        checksum: Its xxh3_128 according to the manifest, in hexadecimal.
        store_format: Version of the store's format.

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
    return tuple(_triplet_from(json.loads(line), store_format) for line in content.decode().splitlines())


def _triplet_json(triplet: Triplet, store_format: int) -> dict[str, Any]:
    scale = 100 if store_format <= _UNIT_SCORES else 1
    return pair_json(triplet.pair) | {
        "response_ids": list(triplet.response_ids),
        "response": triplet.response,
        "trait": triplet.trait / scale,
        "coherence": triplet.coherence / scale,
    }


def pair_json(pair: PromptPair) -> dict[str, Any]:
    """A pair as JSON content, with exact token ids; earlier turns, chat settings and a thought only if there are any."""
    chat = {name: value for name, value in asdict(pair.chat).items() if value != getattr(ChatSettings, name)}
    return {
        "question": pair.question,
        "instruction": pair.instruction,
        "base_ids": list(pair.base_ids),
        "steered_ids": list(pair.prompted_ids),
        "question_length": pair.question_length,
        **({"earlier": [list(turn) for turn in pair.earlier]} if pair.earlier else {}),
        **({"chat": chat} if chat else {}),
        **({"thought_ids": list(pair.thought_ids)} if pair.thought_ids else {}),
    }


def pair_from(read: Mapping[str, Any]) -> PromptPair:
    """Rebuild a pair from the JSON made by `pair_json`."""
    return PromptPair(
        read["question"],
        read["instruction"],
        tuple(read["base_ids"]),
        tuple(read["steered_ids"]),
        read["question_length"],
        tuple((role, content) for role, content in read.get("earlier", ())),
        ChatSettings(**read.get("chat", {})),
        tuple(read.get("thought_ids", ())),
    )


def _triplet_from(read: Mapping[str, Any], store_format: int) -> Triplet:
    trait, coherence = (_hundredfold(read[side]) if store_format <= _UNIT_SCORES else read[side] for side in ("trait", "coherence"))
    return Triplet(pair_from(read), tuple(read["response_ids"]), read["response"], trait, coherence)


def _hundredfold(score: float) -> float:
    """The shortest number that is `score` again when divided by 100; 100 times `score` where rounding leaves none."""
    product = score * 100
    near = (round(product, 12), product, math.nextafter(product, -math.inf), math.nextafter(product, math.inf))
    return min((each for each in near if each / 100 == score), key=lambda each: len(repr(each)), default=product)
