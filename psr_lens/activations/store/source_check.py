"""Whether a store was captured from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psr_lens.activations.store.format import StoreSpec, differences, source_identity
from psr_lens.errors import ArtifactError
from psr_lens.models import HookedModel, model_identity, tokenizer_of
from psr_lens.models.identity_by_content import tokenizer_fingerprint


def check_source(folder: Path, spec: StoreSpec, model: HookedModel) -> None:
    """Refuse a model that a store was not captured from.

    Raises:
        ArtifactError: sizes, processing, weights or tokenizer differ.
    """
    theirs: dict[str, Any] = model_identity(model)
    if theirs != dict(spec.model):
        raise ArtifactError(
            f"{folder}: was captured from another model than this one, {differences(spec.model, theirs, 'in the store', 'of this model')}. "
            "Load the model that it was captured from, capture again, or open the store without `model`."
        )
    if spec.identity:
        here = source_identity(model)
        # Weights of another class or data type have other bytes, though they may be of the same model.
        if all(spec.identity[name] == here[name] for name in ("class", "dtype")) and spec.identity["weights"] != here["weights"]:
            raise ArtifactError(
                f"{folder}: was captured from other weights than this model's, although the sizes agree. "
                "Load the model that it was captured from, capture again, or open the store without `model`."
            )
    if spec.tokenizer and tokenizer_fingerprint(tokenizer_of(model)) != spec.tokenizer:
        raise ArtifactError(
            f"{folder}: was captured with another tokenizer than this model's, so token ids stand for other tokens. "
            "Load the model with the original tokenizer, or capture again."
        )
