"""Names of hook points: which are aliases, which never fire, and where an edit does not do what it seems to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from psr_lens.models.hooked_model import HookedModel, is_bridge

_PREFERRED: Final = re.compile(
    r"hook_(embed|pos_embed|resid_pre|resid_mid|resid_post|attn_out|mlp_out)$"
    r"|attn\.hook_(q|k|v|z|rot_q|rot_k|result|attn_scores|pattern)$|mlp\.hook_(pre|post|pre_linear)$"
    r"|ln\w*\.hook_(scale|normalized)$"
)
"""Where a bridge has several names for one point, the name that `HookedTransformer` also has is used."""

_SWITCHES: Final = {
    "attn.hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
}
"""Endings of the names of points that fire only if a switch in the config is on."""


def distinct_names(model: HookedModel) -> Iterator[str]:
    """One name for each hook point that can fire."""
    names: dict[int, str] = {}
    for name, point in model.hook_dict.items():
        if is_switched_off(model, name):
            continue
        if id(point) not in names or (_PREFERRED.search(name) and not _PREFERRED.search(names[id(point)])):
            names[id(point)] = name
    yield from names.values()


def is_switched_off(model: HookedModel, name: str) -> bool:
    """Whether a hook point needs a config switch that is off: a `HookedTransformer` never fires there, a bridge raises."""
    return any(name.endswith(ending) and not getattr(model.cfg, switch, False) for ending, switch in _SWITCHES.items())


def edit_fault(model: HookedModel, name: str) -> str | None:
    """Why an edit at a hook point would not have its usual effect, and what to do instead; None if it would."""
    if name.endswith(".hook_resid_mid") and is_bridge(model):
        return (
            f"an edit at {name} reaches only the MLP of a TransformerBridge, not the residual stream after it. "
            "Fit at `hook_attn_out` instead, or load the model with backend='hooked_transformer'."
        )
    return None
