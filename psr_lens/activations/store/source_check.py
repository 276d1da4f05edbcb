"""Whether a store was captured from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psr_lens.activations.store.format import StoreSpec, differences
from psr_lens.activations.store.model_identity import comparable, source_identity
from psr_lens.errors import ArtifactError
from psr_lens.models import HookedModel, model_identity, tokenizer_of
from psr_lens.models.identity_by_content import tokenizer_fingerprint


def check_source(folder: Path, spec: StoreSpec, model: HookedModel) -> None:
    """Refuse a model that a store was not captured from.

    Raises:
        ArtifactError: sizes, processing, weights, settings of modules or tokenizer differ.
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
        same_kind = all(spec.identity[name] == here[name] for name in ("class", "dtype"))
        if same_kind and spec.identity["weights"] != here["weights"]:
            raise ArtifactError(
                f"{folder}: was captured from other weights than this model's, although the sizes agree. "
                "Load the model that it was captured from, capture again, or open the store without `model`."
            )
        if same_kind and comparable(spec.identity, here) and spec.identity["settings"] != here["settings"]:
            raise ArtifactError(
                f"{folder}: was captured from a model whose modules have other settings or functions than this one's, although the weights "
                "agree. Load the model again if it was changed, capture again, or open the store without `model`."
            )
    if spec.tokenizer and tokenizer_fingerprint(tokenizer_of(model)) != spec.tokenizer:
        raise ArtifactError(
            f"{folder}: was captured with another tokenizer than this model's, so token ids stand for other tokens. "
            "Load the model with the original tokenizer, or capture again."
        )
