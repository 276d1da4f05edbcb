"""Where a replacement that was carried over came from: the record in its settings, and which replacements can be carried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import xxhash

from psr_lens._utils.tensor_bytes import raw_bytes
from psr_lens.activations.store.triplets import triplets_digest
from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, model_identity
from psr_lens.prompts import Triplet
from psr_lens.replacement import Replacement
from psr_lens.replacement.content_digest import content_digest
from psr_lens.transfer.activation_map import ActivationMap

SETTING: Final = "transfer"
"""Name of the record in a replacement's settings."""


def origin(
    rung: str,
    source_model: Mapping[str, Any],
    target: HookedModel,
    *,
    replacement: Replacement | None = None,
    mapped: ActivationMap | None = None,
    triplets: list[Triplet] | None = None,
    **further: Any,
) -> dict[str, Any]:
    """The record of how a replacement was carried over.

    Args:
        rung: How.
        source_model: Fingerprint of the model that it comes from.
        target: The model that it was made for.
        replacement: The source's replacement; None if it was not used.
        mapped: The map; None if there was none.
        triplets: The target's texts; None if it read none.
        further: Further entries.
    """
    record: dict[str, Any] = {"rung": rung, "source_model": dict(source_model), "target_model": dict(model_identity(target))}
    if replacement is not None:
        record |= {"replacement": content_digest(replacement), "source_data": replacement.data}
    if mapped is not None:
        record |= {"map": map_digest(mapped), "map_texts": mapped.texts, "layers": [list(pair) for pair in mapped.layers]}
    if triplets is not None:
        record["texts"] = triplets_digest(triplets)
    return record | further


def map_digest(mapped: ActivationMap) -> str:
    """xxh3_128 of a map's layers, matrices and offsets, in hexadecimal."""
    found = xxhash.xxh3_128()
    for target_layer, each in mapped.by_target_layer.items():
        found.update(f"{each.source_layer} {target_layer} {tuple(each.matrix.shape)}".encode())
        for part in (each.matrix, each.offset):
            found.update(raw_bytes(part.contiguous()))
    return found.hexdigest()


def check_source(replacement: Replacement, mapped: ActivationMap) -> None:
    """Refuse a replacement that was made for another model than the map's source, or that does not act on the span of the map's texts.

    Raises:
        ArtifactError: another model.
        InputError: another span, or the last prompt token alone.
    """
    check_made_for(replacement, mapped.source_model)
    if replacement.span != "R" or replacement.tokens != "span":
        where = "the last prompt token alone" if replacement.tokens == "last" else f"the span {replacement.span!r}"
        raise InputError(
            "replacement", f"one that acts on {where}", "one that acts on the span 'R', as the texts of the map are read"
        )


def check_made_for(replacement: Replacement, source_model: Mapping[str, Any]) -> None:
    """Refuse a replacement that was made for another model than the source.

    Raises:
        ArtifactError: another model.
    """
    for key in ("architecture", "n_layers", "d_model", "n_heads", "d_vocab", "processing"):
        ours, theirs = replacement.model.get(key), source_model.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise ArtifactError(
                f"replacement: it was made for {replacement.model.get('model_name')} with {key}={ours}; the source is "
                f"{source_model.get('model_name')} with {key}={theirs}. Give a replacement for the source."
            )
