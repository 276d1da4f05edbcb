"""Whether a replacement can act on a model: sizes, processing of the weights, hook points."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from psr_lens.errors import ArtifactError, InputError
from psr_lens.models import HookedModel, edit_fault, fingerprint, processing_differs
from psr_lens.replacement.site import Site
from psr_lens.replacement.spec import ReplacementSpec


def check_compatible(replacement: ReplacementSpec, model: HookedModel) -> None:
    """Refuse a model that a replacement cannot act on.

    Args:
        replacement: The replacement.
        model: A model of TransformerLens; `attach_to_transformers.py` checks plain transformers models.

    Raises:
        InputError: `model` is not a model of TransformerLens.
        ArtifactError: the model's sizes, hook points or processing of the weights differ.
    """
    if not hasattr(model, "cfg") or not hasattr(model, "hooks"):  # `isinstance` would list all hook points of a bridge
        raise InputError(
            "model", type(model).__name__, "a model of TransformerLens", "Plain transformers models are steered by `attach`."
        )
    theirs = fingerprint(model)
    check_sizes(replacement, theirs | {"d_head": int(model.cfg.d_head)})
    if reason := processing_differs(replacement.model, model):
        raise ArtifactError(f"model: this replacement cannot act on {theirs['model_name']}: {reason}")
    hook_dict = model.hook_dict
    for name in replacement.sites:
        if name not in hook_dict:
            raise ArtifactError(
                f"model: it has no hook point {name!r}, where this replacement acts. "
                "Load the model that the replacement was made for; `psr_lens.hook_points(model)` lists this model's hook points."
            )
        if fault := edit_fault(model, name):
            raise ArtifactError(f"model: {fault}")


def check_sizes(replacement: ReplacementSpec, theirs: Mapping[str, Any]) -> None:
    """Refuse a model of other sizes.

    Args:
        replacement: The replacement.
        theirs: The model's `model_name`, `n_layers`, `d_model`, `n_heads` and `d_head`.

    Raises:
        ArtifactError: the sizes differ.
    """
    check_depth_and_width(replacement.model, theirs)
    for name, site in replacement.sites.items():
        _check_width(name, site, theirs)


def check_depth_and_width(made_for: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse a model of another number of layers or another width, which its config alone tells.

    Args:
        made_for: The model that a method was made for, as its artifact describes it.
        theirs: The model's `model_name`, `n_layers` and `d_model`.

    Raises:
        ArtifactError: they differ.
    """
    for key in ("d_model", "n_layers"):
        if key in made_for and made_for[key] != theirs[key]:
            raise ArtifactError(
                f"model: this method was made for {made_for.get('model_name')} with {key}={made_for[key]}, "
                f"this model ({theirs['model_name']}) has {key}={theirs[key]}. Load the model that it was made for, or fit a new one."
            )


def _check_width(name: str, site: Site, theirs: Mapping[str, Any]) -> None:
    per_head = re.search(r"attn\.hook_(q|z)$", name) is not None
    if not per_head and not re.search(r"hook_(embed|resid_pre|resid_mid|resid_post|attn_out|mlp_out)$", name):
        return
    keys = ("n_heads", "d_head") if per_head else ("d_model",)
    wanted = tuple(int(theirs[key]) for key in keys)
    if site.width != wanted:
        raise ArtifactError(
            f"model: the directions at {name} are {' × '.join(map(str, site.width))} wide, this model "
            f"({theirs['model_name']}) has {', '.join(f'{key}={size}' for key, size in zip(keys, wanted, strict=True))}. "
            "Load the model that they were made for, or fit a new replacement."
        )
