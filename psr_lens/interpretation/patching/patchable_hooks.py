"""The activations that can be moved between contexts, and checks of the arguments that choose them."""

from __future__ import annotations

from typing import Final, get_args

from psr_lens.errors import InputError
from psr_lens.models import HookedModel
from psr_lens.models.hook_points import Layers, check_layers
from psr_lens.prompts import Context

HOOKS: Final = {
    "resid_pre": "hook_resid_pre",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
    "z": "attn.hook_z",
}
"""Patchable hook points by short name. `resid_mid` is not among them: a `TransformerBridge` ignores changes there."""


def patchable_points(model: HookedModel, hook: str, layers: Layers) -> dict[str, int]:
    """Names of one kind of hook point, and the layer of each.

    Raises:
        InputError: unknown kind, or a layer out of range.
    """
    if hook not in tuple(HOOKS):
        raise InputError("hook", repr(hook), f"one of {', '.join(HOOKS)}")
    return {f"blocks.{layer}.{HOOKS[hook]}": layer for layer in check_layers(model, layers)}


def other_context(into: Context) -> Context:
    """The context whose activations are patched into `into`.

    Raises:
        InputError: unknown context.
    """
    if into not in get_args(Context):
        raise InputError("into", repr(into), "'base' or 'prompted'")
    return "prompted" if into == "base" else "base"
