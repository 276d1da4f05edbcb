"""What a store records of the model that it was captured from, to tell it from others of the same sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from psr_lens._utils.optional import versions
from psr_lens.models import HookedModel, has_hooks, model_content

_SETTINGS: Final = "settings"
_SETTINGS_OF: Final = "settings_of"
"""Entries of the identity: what the model's modules compute with besides weights, and the packages that they are of. Stores that were
written before there were these lack them."""


def source_identity(model: HookedModel) -> dict[str, Any]:
    """What tells a model from others of the same sizes, as JSON content."""
    whole = model_content(model)
    kept = {name: whole[name] for name in ("class", "weights", "config", _SETTINGS)}
    # Other versions of these packages have modules with other attributes.
    kept[_SETTINGS_OF] = dict(versions()[1:])
    return kept | {"dtype": str(model.cfg.dtype).removeprefix("torch."), "hooks": has_hooks(model)}


def comparable(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether the settings of two models' modules can be compared: both are recorded, and by the same versions of the packages."""
    return _SETTINGS in recorded and recorded.get(_SETTINGS_OF) == here[_SETTINGS_OF]


def as_recorded(recorded: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """A model's identity with the settings that a store recorded, where they cannot be compared, so that the two are compared otherwise."""
    if comparable(recorded, here):
        return dict(here)
    others = {name: each for name, each in here.items() if name not in (_SETTINGS, _SETTINGS_OF)}
    return others | {name: recorded[name] for name in (_SETTINGS, _SETTINGS_OF) if name in recorded}
