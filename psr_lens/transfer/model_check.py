"""Whether a model is the one that something was made for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from psr_lens.errors import ArtifactError
from psr_lens.models import HookedModel, model_identity, processing_differs

SAME: Final = ("architecture", "n_layers", "d_model", "n_heads", "d_vocab")
"""What has to agree; a name may differ, as that of the same model in another folder does."""


def check_model_is(model: HookedModel, recorded: Mapping[str, Any], role: str) -> None:
    """Refuse another model than the one with a fingerprint.

    Args:
        model: The model.
        recorded: The fingerprint.
        role: What the error calls the model: `source` or `target`.

    Raises:
        ArtifactError: sizes, vocabulary, architecture or the processing of the weights differ.
    """
    theirs = model_identity(model)
    for key in SAME:
        if key in recorded and recorded[key] != theirs[key]:
            raise ArtifactError(
                f"{role}: this map was made with {recorded.get('model_name')} as the {role}, with {key}={recorded[key]}; this model "
                f"({theirs['model_name']}) has {key}={theirs[key]}. Give the model that it was made with, or make a map for this one."
            )
    if reason := processing_differs(recorded, model):
        raise ArtifactError(f"{role}: this map cannot be used with {theirs['model_name']}: {reason}")
