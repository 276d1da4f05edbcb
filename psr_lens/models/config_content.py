"""A config as JSON content that is the same in every process, wherever the model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

PLACES: Final = frozenset({"device", "n_devices", "model_name", "tokenizer_name", "name_or_path", "_name_or_path"})
"""Entries of a config that say only where a model is or was."""


def config_content(value: Any) -> Any:
    """A config as JSON content that is the same in every process: an object that is neither data nor a type is named by its class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): config_content(each) for key, each in value.items() if str(key) not in PLACES}
    if isinstance(value, list | tuple):
        return [config_content(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, torch.dtype | type):
        return str(value)
    if hasattr(value, "to_dict"):
        return config_content(value.to_dict())
    return f"{type(value).__module__}.{type(value).__qualname__}"
