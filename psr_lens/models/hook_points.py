"""The hook points of a model: listing them, and selecting some by kind, name, pattern and layer."""

from __future__ import annotations

import difflib
import fnmatch
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, SupportsIndex

import torch
from torch import Tensor

from psr_lens._utils.arguments import CHECKS, checks_arguments, described, fits
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens._utils.sequences import ranges
from psr_lens.errors import InputError
from psr_lens.models.forward_pass import forward
from psr_lens.models.hook_names import distinct_names, is_switched_off
from psr_lens.models.hooked_model import HookedModel, device_of
from psr_lens.models.temporary_hooks import hooked

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
"""Kind to the hook points of that kind, at every layer."""

Layers = str | SupportsIndex | Iterable[SupportsIndex]
"""`"all"`, one layer or several, as Python or numpy integers; negative ones count from the end."""

_HEAD: Final = ("hook point", "layers", "shape of a token", "bytes a token", "captured")
_PROBE_BATCH: Final = 2
_PROBE_LENGTH: Final = 5


@dataclass(frozen=True)
class HookPointInfo:
    """One hook point that fires in a forward pass."""

    name: str
    """TransformerLens's name."""
    layer: int | None
    """The layer whose block holds it; None outside the blocks."""
    shape: tuple[int, ...]
    """Shape of one token's activation; for an attention pattern `(head,)`, with one number per key for each head."""
    per_token: bool
    """Whether the activation is `[batch, position, …]`, with one row per token."""
    dtype: torch.dtype
    """Data type of the activation."""

    @property
    def is_pattern(self) -> bool:
        """Whether it is an attention pattern, whose keys are aligned between the two contexts."""
        return is_pattern(self.name)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's activation (of an attention pattern: per key); 0 if it cannot be captured."""
        return self.dtype.itemsize * int(torch.Size(self.shape).numel()) if self.per_token or self.is_pattern else 0


class HookPointTable(tuple[HookPointInfo, ...]):
    """The hook points of a model in the order of firing; `print` shows a table with one line for each kind."""

    def __str__(self) -> str:
        """Plain text, one line for each kind."""
        rows = [_HEAD, *map(self._row, self._kinds())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)

    def __repr__(self) -> str:
        """How many points there are, and at how many layers."""
        layers = {point.layer for point in self} - {None}
        return f"HookPointTable({counted(len(self), 'hook point')}, {counted(len(layers), 'layer')})"

    def _repr_html_(self) -> str:
        return table(_HEAD, [self._row(kind) for kind in self._kinds()])

    def _kinds(self) -> list[list[HookPointInfo]]:
        kinds: dict[tuple[str, tuple[int, ...]], list[HookPointInfo]] = {}
        for point in self:
            kinds.setdefault((at_every_layer(point.name), point.shape), []).append(point)
        return list(kinds.values())

    @staticmethod
    def _row(kind: list[HookPointInfo]) -> tuple[str, str, str, str, str]:
        point, layers = kind[0], [each.layer for each in kind if each.layer is not None]
        shape, size = " × ".join(map(str, point.shape)), f"{point.bytes_per_token:,}"
        how = "yes" if point.per_token else "no row per token"
        if point.is_pattern:
            shape, size, how = f"{shape} × key", f"{size} × keys", "on request: keys aligned"
        return (
            at_every_layer(point.name),
            ranges(layers) or "–",
            shape if point.bytes_per_token else "–",
            size if point.bytes_per_token else "–",
            how,
        )


def at_every_layer(name: str) -> str:
    """The pattern of a hook point at every layer: `blocks.3.hook_resid_post` → `blocks.*.hook_resid_post`."""
    return re.sub(r"^blocks\.\d+\.", "blocks.*.", name)


def is_pattern(name: str) -> bool:
    """Whether a hook name is that of an attention pattern, `[batch, head, query, key]`."""
    return name.endswith("attn.hook_pattern")


def layer_of(name: str) -> int | None:
    """The layer in a hook name, `blocks.3.hook_resid_post` → 3; None for a point outside the blocks."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match.group(1)) if match else None


def point_of(name: str) -> str:
    """The point of a layer in a hook name, `blocks.3.hook_resid_post` → `hook_resid_post`; a point outside the blocks as it is."""
    return re.sub(r"^blocks\.\d+\.", "", name)


@checks_arguments
def hook_points(model: HookedModel) -> HookPointTable:
    """Every distinct hook point that fires in a forward pass of `model`, in the order of firing, as a table.

    A hook point that has several names in a bridge is listed once. Points that do not fire by default are left out (such as
    `attn.hook_result` before `model.set_use_attn_result(True)`). Takes one forward pass of ten tokens.

    Raises:
        InputError: `model` is not a model with hook points.

    Example:
        >>> points = psr.hook_points(model)
        >>> next(point.shape for point in points if point.name == "blocks.3.hook_resid_post")
        (128,)
        >>> print(points)
        hook point  layers  shape of a token  bytes a token  captured
        ...
        blocks.*.hook_resid_post  0–5  128  512  yes
        ...
    """
    return HookPointTable(_probe(model, distinct_names(model)))


def hook_shapes(model: HookedModel, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Hook name to the shape of one token's activation, for points that fire; for an attention pattern `(head,)`."""
    found = {point.name: point.shape for point in _probe(model, names)}
    return {name: found[name] for name in names}


def _probe(model: HookedModel, names: Iterable[str]) -> list[HookPointInfo]:
    seen: dict[str, HookPointInfo] = {}

    def note(name: str) -> Any:
        def hook(activation: Any, hook: Any) -> None:
            if not isinstance(activation, Tensor):  # a router may give several tensors
                return
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


def _is_per_token(activation: Tensor) -> bool:
    """False for attention scores and patterns: they are `[batch, head, query, key]`, without one row per token."""
    if activation.ndim < 3:
        return False
    is_square = activation.ndim == 4 and activation.shape[2:] == (_PROBE_LENGTH, _PROBE_LENGTH)
    return activation.shape[:2] == (_PROBE_BATCH, _PROBE_LENGTH) and not is_square


def select_hooks(model: HookedModel, hooks: str | Sequence[str], layers: Layers | None = None) -> list[str]:
    """The names of the selected hook points, in the model's order.

    Attention patterns are selected only by name or as `"pattern"`, not by `"all"` or a wider glob pattern.

    Args:
        model: The model.
        hooks: `"all"`; a kind (one of `KINDS`, such as `"resid_post"`); a hook name; a glob pattern (`"blocks.*.attn.hook_z"`); or
            several of these.
        layers: Only hook points of these layers (see `check_layers`); None for no restriction.

    Raises:
        InputError: the model has no such hook point, a layer is out of range, or a point does not have one row per token.
    """
    points = {point.name: point for point in hook_points(model)}
    wanted = [hooks] if isinstance(hooks, str) else list(hooks) if isinstance(hooks, Iterable) else None
    if wanted is None or not all(isinstance(each, str) for each in wanted):
        raise InputError("hooks", repr(hooks), "'all', a kind, a hook name, a glob pattern, or a list of these")
    if not wanted:
        raise InputError("hooks", "an empty list", "at least one hook point")
    names: dict[str, None] = {}
    for each in wanted:
        names.update(dict.fromkeys(_matches(model, each, points)))
    if layers is not None:
        allowed = set(check_layers(model, layers))
        chosen, names = list(names), {name: None for name in names if layer_of(name) in allowed}
        if not names:
            raise InputError("layers", repr(layers), f"layers of the selected hook points ({listed(chosen)})")
    order = {name: index for index, name in enumerate(points)}
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
        found = [name for name in named if name == pattern]  # another name of a point that is listed once
    if not found:
        raise _no_hook_point(wanted, points)
    if any(mark in pattern for mark in "*?["):
        kept = [name for name in found if points[name].per_token]
        found = kept or found
    for name in found:
        if name in points and not (points[name].per_token or points[name].is_pattern):
            raise InputError(
                "hooks",
                repr(name),
                "a hook point with one row per token, or an attention pattern",
                f"Use `{name.rpartition('.')[0]}.hook_pattern` for attention." if "attn" in name else "",
            )
    return found


def check_hook_names(hooks: Iterable[str], n_layers: int | None) -> None:
    """Refuse names that no model with so many layers has, before one is loaded; `select_hooks` refuses the others.

    Args:
        hooks: Kinds, hook names and glob patterns.
        n_layers: Number of layers; None if it is not known.

    Raises:
        InputError: there cannot be such a hook point.
    """
    for each in hooks:
        if each == "all" or each in KINDS or any(mark in each for mark in "*?["):
            continue
        layer = layer_of(each)
        is_deeper = layer is not None and n_layers is not None and layer >= n_layers
        if is_deeper or not each.rpartition(".")[2].startswith("hook_"):
            raise _no_hook_point(each, ())


def _no_hook_point(wanted: str, known: Iterable[str]) -> InputError:
    return InputError(
        "hooks",
        repr(wanted),
        f"'all', a kind ({', '.join(KINDS)}), a hook name or a glob pattern that this model has",
        f"{did_you_mean(wanted, [*KINDS, *known])}`psr_lens.hook_points(model)` lists them.",
    )


def are_layers(layers: object, argument: str = "layers") -> None:
    """Refuse what cannot be layers of any model.

    Raises:
        InputError: it is no text, no whole number and no list of whole numbers.
    """
    if not fits(layers, Layers):
        raise InputError(argument, described(layers), "'all', a layer or a list of layers")


CHECKS[Layers] = are_layers


def check_layers(model: HookedModel, layers: Layers) -> list[int]:
    """Layers as a sorted list of ints, counted from the start.

    Args:
        model: The model.
        layers: `"all"`, one layer or several, as Python or numpy integers; negative ones count from the end.

    Raises:
        InputError: a layer is out of range or not a whole number, or there is none.
    """
    depth = int(model.cfg.n_layers)
    if isinstance(layers, str) and layers == "all":
        return list(range(depth))
    found = _whole_numbers(layers)
    if not found or not all(-depth <= layer < depth for layer in found):
        raise InputError("layers", repr(layers), f"'all' or layers from 0 to {depth - 1} (this model has {depth})")
    return sorted({layer % depth for layer in found})


def _whole_numbers(layers: Any) -> list[int]:
    """Python, numpy or torch integers as a list of ints; empty if one of them is anything else."""
    try:
        each = [layers] if hasattr(layers, "__index__") and not getattr(layers, "ndim", 0) else list(layers)
        return [] if any(isinstance(layer, bool) for layer in each) else [operator.index(layer) for layer in each]
    except TypeError:
        return []


def listed(names: Iterable[str]) -> str:
    """Hook names in words, the layers of one kind together: `hook_embed, blocks.0–3.hook_resid_post`."""
    kinds: dict[str, list[int]] = {}
    for name in names:
        layer = layer_of(name)
        kinds.setdefault(at_every_layer(name), []).extend([] if layer is None else [layer])
    return ", ".join(kind.replace("*", ranges(layers), 1) if layers else kind for kind, layers in kinds.items())


def did_you_mean(wanted: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'? ` with the known name that is closest to a wrong one; empty if none is close."""
    close = difflib.get_close_matches(wanted, known, n=1)
    return f"Did you mean {close[0]!r}? " if close else ""
