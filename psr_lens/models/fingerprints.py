"""What an artifact must match to be used on a model: sizes, vocabulary, and how the weights were processed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from torch import Tensor

from psr_lens.models.hooked_model import HookedModel, is_bridge
from psr_lens.models.verification import verification_of

UNPROCESSED: Final = "none"
"""The value of `processing` for weights as they were trained."""

_ROWS: Final = 256
"""Rows of the embedding that are inspected."""

_CENTRED: Final = 2e-3
"""Largest |mean| of a centred row, relative to its norm / √d_model; rounding to bfloat16 gives 1e-4, chance 1 / √d_model."""


def fingerprint(model: HookedModel) -> dict[str, Any]:
    """What an artifact records of the model that it was made with: what `model_identity` gives, and `verified`.

    `verified` says how `load_model` checked the model against plain transformers: the largest difference of logits in units of their
    standard deviation, the type of the weights, and the number of tokens. It is False for a model that was not.
    """
    verification = verification_of(model)
    return model_identity(model) | {"verified": False if verification is None else verification.to_json()}


def model_identity(model: HookedModel) -> dict[str, Any]:
    """What an artifact must match to be used on a model: sizes, vocabulary and the processing of the weights.

    `processing` is present only for processed weights, so an artifact saved before it was recorded counts as made for unprocessed ones.
    """
    cfg = model.cfg
    found = {
        "model_name": str(getattr(cfg, "model_name", "unknown")),
        "n_layers": int(cfg.n_layers),
        "d_model": int(cfg.d_model),
        "n_heads": int(cfg.n_heads),
        "d_vocab": int(cfg.d_vocab),
        "architecture": str(getattr(cfg, "original_architecture", None) or getattr(cfg, "architecture", None) or "unknown"),
    }
    processed = processing(model)
    return found if processed == UNPROCESSED else found | {"processing": processed}


def processing(model: HookedModel) -> str:
    """How TransformerLens processed the weights: `"none"`, or `"fold_ln"`, `"center_writing_weights"` or both, joined by ` + `.

    `HookedTransformer.from_pretrained` processes by default, as does a bridge's `enable_compatibility_mode`; `load_model` does not.
    """
    steps = {"fold_ln": _is_folded(model), "center_writing_weights": _is_centred(model)}
    return " + ".join(step for step, done in steps.items() if done) or UNPROCESSED


def processing_differs(recorded: Mapping[str, Any], model: HookedModel) -> str | None:
    """Why an artifact made for a model with the fingerprint `recorded` is in another basis than this model; None if it is not."""
    there, here = str(recorded.get("processing", UNPROCESSED)), processing(model)
    if there == here:
        return None
    made, found = ("as they were trained" if each == UNPROCESSED else f"processed ({each})" for each in (there, here))
    remedy = (
        "Load the model with `psr_lens.load_model`, `HookedTransformer.from_pretrained_no_processing` or without "
        "`enable_compatibility_mode`"
        if there == UNPROCESSED
        else "Process the weights in the same way (`HookedTransformer.from_pretrained`, or `enable_compatibility_mode` of a bridge)"
    )
    return f"it was made for weights {made}, this model's are {found}, so activations differ. {remedy}, or fit again."


def _is_folded(model: HookedModel) -> bool:
    if is_bridge(model):  # compatibility mode is possible without processing
        return bool(getattr(model, "_weights_processed", getattr(model, "compatibility_mode", False)))
    return str(model.cfg.normalization_type).endswith("Pre")


def _is_centred(model: HookedModel) -> bool:
    """Whether the embedding has no component along (1, 1, …, 1); no setting records it."""
    rows = cast(Tensor, cast(Any, model).W_E)[:_ROWS].detach().float()
    length = rows.square().mean().sqrt()
    return bool(length > 0) and bool(rows.mean(-1).square().mean().sqrt() < _CENTRED * length)
