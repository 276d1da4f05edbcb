"""Checking an already loaded model against plain transformers, where one is available."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Final, cast

import torch

from psr_lens.errors import ModelError, PsrLensError
from psr_lens.models.foreign_hooks import module_has_hooks
from psr_lens.models.forward_pass import frozen
from psr_lens.models.hooked_model import HookedModel, all_modules, device_of, dtype_of, is_bridge
from psr_lens.models.module_settings import record_settings
from psr_lens.models.placement import Placement
from psr_lens.models.plain_model import held_plain_model
from psr_lens.models.sources import Source, find_source
from psr_lens.models.transformers_model import check_weights, in_short, read_weights, readable
from psr_lens.models.verification import DisagreementError, Probe, probe_of, record_verification, verify_model
from psr_lens.models.wrapping import quiet

_UNNAMED: Final = "custom"
"""The name that TransformerLens gives to a model that was made from a configuration."""


class _NothingToCompareError(Exception):
    """There is no plain model; the message says why."""


def verify_loaded(model: HookedModel) -> None:
    """Check an already loaded model against plain transformers, and record the result for its fingerprint.

    A bridge, and a `HookedTransformer` that `load_model` made, are compared with the transformers model that they share weights with; any
    other model with the one that its config names, read again. Processing by TransformerLens (folded norms, centred weights) may shift all
    logits of a position by a constant, which is left out of the comparison. If there is nothing to compare a model with, a warning
    says so, and the model counts as unverified.

    Args:
        model: The model; its mode, weights and hooks stay as they are.

    Raises:
        DisagreementError: it computes something else than transformers.
        ModelError: weights or transformers' logits are not finite, or there is not enough memory.
    """
    kind = "TransformerBridge" if is_bridge(model) else "HookedTransformer"
    check_weights(cast(torch.nn.Module, model), f"the weights of this {kind}")
    try:
        probe, source = _probe(model)
    except _NothingToCompareError as reason:
        record_verification(model, None)
        warnings.warn(f"model: this {kind} was not checked against plain transformers: {reason}.", RuntimeWarning, stacklevel=3)
        return
    try:
        with frozen(model):
            record_verification(model, verify_model(model, probe, f"this {kind}"))
        record_settings(model)
    except DisagreementError as error:
        if source is None:
            raise
        raise DisagreementError(
            f"{error} It was compared with {source}, which its config names. If it is another model, give it another `cfg.model_name`."
        ) from error


def _probe(model: HookedModel) -> tuple[Probe, Source | None]:
    """What the model is compared with, and where that was read from; None if the model itself contains it.

    Raises:
        _NothingToCompareError: there is no plain model.
    """
    if any(map(module_has_hooks, all_modules(model))):
        raise _NothingToCompareError("there are hooks on it")
    plain = held_plain_model(model)
    if plain is not None:
        with frozen(model):
            return _run(plain), None
    source = _source_of(model)
    try:
        with quiet():
            plain = read_weights(source, Placement(device_of(model)), dtype_of(model))
        with readable(source):
            return replace(probe_of(plain), up_to_constant=True), source
    except PsrLensError as error:
        raise _NothingToCompareError(str(error).removeprefix("model: ").rstrip(".")) from error


def _run(plain: Any) -> Probe:
    try:
        return probe_of(plain)
    except (ModelError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _NothingToCompareError(f"the transformers model in it cannot be run by itself ({in_short(error)})") from error


def _source_of(model: HookedModel) -> Source:
    """The source that a model's config names.

    Raises:
        _NothingToCompareError: it names none that can be found.
    """
    name = str(getattr(model.cfg, "model_name", None) or _UNNAMED)
    # TransformerLens shortens a repository's name or a path to its last part, and keeps all of it as the tokenizer's.
    tokenizer = str(getattr(model.cfg, "tokenizer_name", None) or "")
    for each in (tokenizer, name) if tokenizer.rpartition("/")[2] == name else (name,):
        try:
            source = find_source(each)
        except PsrLensError:
            continue
        if source.is_of_transformer_lens:
            raise _NothingToCompareError(f"transformers has no version of {source}")
        return source
    if name == _UNNAMED:
        raise _NothingToCompareError("its config does not say which model it is")
    raise _NothingToCompareError(f"the model that its config names, {name!r}, cannot be found")
