"""Which hook points a model has, what fires there, and how a user names a selection of them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from psr_lens._utils.html_table import table
from psr_lens.errors import InputError
from psr_lens.models.hook_names import distinct_names, is_switched_off
from psr_lens.models.hooked_model import HookedModel, device_of
from psr_lens.models.hooks import hooked
from psr_lens.models.running import forward

KINDS: Final = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "resid_pre": "blocks.*.hook_resid_pre",
    "resid_mid": "blocks.*.hook_resid_mid",
    "resid_post": "blocks.*.hook_resid_post",
    "attn_out": "blocks.*.hook_attn_out",
    "mlp_out": "blocks.*.hook_mlp_out",
    "z": "blocks.*.attn.hook_z",
    "q": "blocks.*.attn.hook_q",
    "k": "blocks.*.attn.hook_k",
    "v": "blocks.*.attn.hook_v",
    "result": "blocks.*.attn.hook_result",
    "pattern": "blocks.*.attn.hook_pattern",
    "mlp_post": "blocks.*.mlp.hook_post",
}
"""Short names for the hook points of one kind at every layer."""

_PROBE_BATCH: Final = 2
_PROBE_LENGTH: Final = 5


@dataclass(frozen=True)
class HookPointInfo:
    """One hook point that fires in a forward pass."""

    name: str
    """TransformerLens's name."""
    layer: int | None
    """The block that it lies in, or None outside the blocks."""
    shape: tuple[int, ...]
    """Shape of one token's activation; of an attention pattern the heads, each of which has a number for every key."""
    per_token: bool
    """Whether the activation is `[batch, position, …]`, with one row a token."""
    dtype: torch.dtype
    """Type of the activation."""

    @property
    def is_pattern(self) -> bool:
        """Whether it is an attention pattern, whose keys are aligned between the contexts."""
        return is_pattern(self.name)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token's activation takes (for an attention pattern: with one key); 0 where it cannot be captured."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel()) if self.per_token or self.is_pattern else 0


class HookPointTable(tuple[HookPointInfo, ...]):
    """The hook points of a model in the order of firing; shows itself as a table, the layers of one kind on one line."""

    def __str__(self) -> str:
        """Plain text, one line a kind."""
        rows = [("hook point", "layers", "shape of a token", "bytes a token", "captured"), *map(self._row, self._kinds())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = ("hook point", "layers", "shape of a token", "bytes a token", "captured")
        return table(head, [self._row(kind) for kind in self._kinds()])

    def _kinds(self) -> list[list[HookPointInfo]]:
        kinds: dict[tuple[str, tuple[int, ...]], list[HookPointInfo]] = {}
        for point in self:
            kinds.setdefault((_every_layer(point.name), point.shape), []).append(point)
        return list(kinds.values())

    @staticmethod
    def _row(kind: list[HookPointInfo]) -> tuple[str, str, str, str, str]:
        point, layers = kind[0], [each.layer for each in kind if each.layer is not None]
        shape, size = " × ".join(map(str, point.shape)), f"{point.bytes_per_token:,}"
        how = "yes" if point.per_token else "no row a token"
        if point.is_pattern:
            shape, size, how = f"{shape} × key", f"{size} × keys", "on request: keys aligned"
        return (
            _every_layer(point.name),
            _spans(layers) if layers else "–",
            shape if point.bytes_per_token else "–",
            size if point.bytes_per_token else "–",
            how,
        )


def _every_layer(name: str) -> str:
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", name)


def _spans(layers: Sequence[int]) -> str:
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}" if len(layers) > 1 else str(layers[0])
    return ", ".join(map(str, layers))


def is_pattern(name: str) -> bool:
    """Whether a hook name is that of an attention pattern, `[batch, head, query, key]`."""
    return name.endswith("attn.hook_pattern")


def layer_of(name: str) -> int | None:
    """The layer in a hook name, `blocks.3.hook_resid_post` → 3; None for a point outside the blocks."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match.group(1)) if match else None


def hook_points(model: HookedModel) -> HookPointTable:
    """Every distinct hook point that fires in a forward pass of `model`, in the order of firing, as a table.

    Aliases of a bridge are listed once. Points that TransformerLens has but that stay silent (`attn.hook_result` and kin, until
    `set_use_attn_result(True)`) are left out. Costs one forward pass of ten tokens.
    """
    return HookPointTable(_probe(model, distinct_names(model)))


def hook_shapes(model: HookedModel, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Name to the shape of one token's activation, for names that fire; of an attention pattern the heads."""
    found = {point.name: point.shape for point in _probe(model, names)}
    return {name: found[name] for name in names}


def _probe(model: HookedModel, names: Iterable[str]) -> list[HookPointInfo]:
    seen: dict[str, HookPointInfo] = {}

    def note(name: str) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            per_token = _is_per_token(activation)
            shape = tuple(activation.shape[2:]) if per_token else ()
            if is_pattern(name):
                shape = (activation.shape[1],)
            seen.setdefault(name, HookPointInfo(name, layer_of(name), shape, per_token, activation.dtype))

        return hook

    tokens = torch.zeros(_PROBE_BATCH, _PROBE_LENGTH, dtype=torch.long, device=device_of(model))
    with torch.no_grad(), hooked(model, [(name, note(name)) for name in names]):
        forward(model, tokens, torch.ones_like(tokens))
    return list(seen.values())


def _is_per_token(activation: object) -> bool:
    """Attention scores and patterns are `[batch, head, query, key]`: no row a token."""
    if not isinstance(activation, Tensor) or activation.ndim < 3:
        return False
    is_square = activation.ndim == 4 and activation.shape[2:] == (_PROBE_LENGTH, _PROBE_LENGTH)
    return activation.shape[:2] == (_PROBE_BATCH, _PROBE_LENGTH) and not is_square


def select_hooks(model: HookedModel, hooks: str | Sequence[str], layers: Sequence[int] | None = None) -> list[str]:
    """The names of the hook points that a selection means, in the model's order.

    Args:
        model: The model.
        hooks: `"all"`; a kind such as `"resid_post"` (one of `KINDS`); a name; a glob pattern (`"blocks.*.attn.hook_z"`); or several.
        layers: Keep only points of these layers.

    Raises:
        InputError: nothing in the model has such a name, a layer is out of range, or a point has no row a token.

    Attention patterns are taken where they are asked for by name or as `"pattern"`; neither `"all"` nor a wider glob takes them in.
    """
    points = {point.name: point for point in hook_points(model)}
    wanted = [hooks] if isinstance(hooks, str) else list(hooks)
    if not wanted:
        raise InputError("hooks", "an empty list", "at least one hook point")
    names: dict[str, None] = {}
    for each in wanted:
        names.update(dict.fromkeys(_matches(model, each, points)))
    if layers is not None:
        allowed = set(check_layers(model, layers))
        chosen, names = list(names), {name: None for name in names if layer_of(name) in allowed}
        if not names:
            raise InputError("layers", repr(layers), f"layers with one of the hook points chosen ({', '.join(chosen)})")
    order = {name: place for place, name in enumerate(points)}
    return sorted(names, key=lambda name: order.get(name, len(order)))


def _matches(model: HookedModel, wanted: str, points: dict[str, HookPointInfo]) -> list[str]:
    if wanted == "all":
        return [name for name, point in points.items() if point.per_token]
    pattern = KINDS.get(wanted, wanted)
    found = [name for name in points if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        named = [name for name in model.hook_dict if fnmatch.fnmatchcase(name, pattern)]
        if any(is_switched_off(model, name) for name in named):
            raise InputError(
                "hooks", repr(wanted), "a hook point that fires", "Turn it on first, e.g. `model.set_use_attn_result(True)`."
            )
        found = [name for name in named if name == pattern]  # another name of a point that a bridge lists once
    if not found:
        raise InputError(
            "hooks",
            repr(wanted),
            f"'all', a kind ({', '.join(KINDS)}), a hook name or a glob pattern that this model has",
            "`psr_lens.hook_points(model)` lists them.",
        )
    if any(mark in pattern for mark in "*?["):
        kept = [name for name in found if points[name].per_token]
        found = kept or found
    for name in found:
        if name in points and not (points[name].per_token or points[name].is_pattern):
            raise InputError(
                "hooks",
                repr(name),
                "a hook point with one row a token, or an attention pattern",
                f"It has neither; `{name.rpartition('.')[0]}.hook_pattern` has the attention." if "attn" in name else "",
            )
    return found


def check_layers(model: HookedModel, layers: str | int | Sequence[int]) -> list[int]:
    """Layers as a sorted list: `"all"`, one layer or several; negative ones count from the end.

    Raises:
        InputError: a layer is out of range.
    """
    depth = int(model.cfg.n_layers)
    if layers == "all":
        return list(range(depth))
    wanted = [layers] if isinstance(layers, int) else layers
    if (
        isinstance(wanted, str)
        or not isinstance(wanted, Iterable)
        or not (wanted := list(wanted))
        or not all(isinstance(layer, int) and -depth <= layer < depth for layer in wanted)
    ):
        raise InputError("layers", repr(layers), f"'all' or layers from 0 to {depth - 1} (this model has {depth})")
    return sorted({layer % depth for layer in wanted})
