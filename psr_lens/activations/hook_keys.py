"""Looking up a captured hook point: `captured["resid_post", 3]` or `captured["blocks.3.hook_resid_post"]`."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any, SupportsIndex

from psr_lens.errors import InputError
from psr_lens.models.hook_points import KINDS, at_every_layer, did_you_mean, layer_of, listed

HookKey = str | tuple[str, SupportsIndex]
"""A hook name, or a kind and a layer; negative layers count from the model's last one."""


def is_hook_key(key: object) -> bool:
    """Whether `key` stands for one hook point: a name, or a kind and a layer."""
    return isinstance(key, str) or (
        isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str) and hasattr(key[1], "__index__")
    )


def captured_name(key: Any, captured: Collection[str], n_layers: int | None) -> str:
    """The name of one captured hook point.

    Args:
        key: A hook name, a kind that stands outside the layers (`"embed"`), or a kind and a layer.
        captured: Names of the captured hook points.
        n_layers: Depth of the model, to resolve negative layers; None if it is not known.

    Raises:
        InputError: that hook point was not captured, or `key` is neither a name nor a kind and a layer.
    """
    name = _name(key, n_layers)
    if name in captured:
        return name
    raise InputError("hook", repr(key), f"one of those captured: {listed(captured)}", _remedy(key, captured))


def _name(key: Any, n_layers: int | None) -> str:
    if not is_hook_key(key):
        return ""
    kind, layer = (key, None) if isinstance(key, str) else (key[0], operator.index(key[1]))
    if layer is None:
        return KINDS.get(kind, kind)
    if layer < 0:
        layer += n_layers or 0
    # A part of a pattern, such as `pattern:instruction`, is named after the pattern.
    kind, colon, part = kind.partition(":")
    return KINDS.get(kind, f"blocks.*.{kind}").replace("*", str(layer)) + colon + part


def _remedy(key: Any, captured: Collection[str]) -> str:
    """A close name or kind, or how a hook point is given."""
    kinds = {kind: pattern for kind, pattern in KINDS.items() if pattern in set(map(at_every_layer, captured))}
    if isinstance(key, str):
        if key in kinds:
            layer = next(layer_of(name) for name in captured if at_every_layer(name) == kinds[key])
            return f"Give a layer too: [{key!r}, {layer}]."
        close = did_you_mean(key, [*captured, *kinds])
    else:
        close = did_you_mean(key[0], kinds) if is_hook_key(key) and key[0] not in kinds else ""
    return close.strip() or "Give a hook name, or a kind and a layer such as ['resid_post', 0]."
