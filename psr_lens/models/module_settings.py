"""What a model's modules compute with besides weights: their classes, settings and functions, as one digest by content.

Nothing is kept from one look to the next. A look takes some milliseconds, and what it sees is what the model's next call computes with.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import Any, Final

from torch import nn

from psr_lens._utils.digests import digest_of
from psr_lens.models.code_content import Contents, NotToldError, replaced_in_module
from psr_lens.models.config_content import PLACES
from psr_lens.models.foreign_hooks import has_hooks
from psr_lens.models.generation_scopes import ObservedGenerate
from psr_lens.models.hooked_model import HookedModel, named_modules_of

_OF_TORCH: Final = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
"""The mode of training, weights, buffers, modules and hooks, which are looked at elsewhere; and what `compile` made of a module."""
_PLACES: Final = PLACES | {"hf_device_map", "_hf_hook"}
"""Where a model is or was."""
_TOLD_ELSEWHERE: Final = frozenset({"tokenizer", "_tokenizer", "generation_config"})
"""The tokenizer and the end tokens, which have entries of their own; psr_lens samples by settings of its own."""
_GROWING: Final = frozenset({"max_seq_len_cached", "_cos_cached", "_sin_cached", "cos_cached", "sin_cached"})
"""The longest text that a RoPE has met so far, and its tables up to there, which follow from its frequencies."""
_STATE: Final = frozenset(
    {"_attn_scores", "_block_alias_cache", "_capture_hf_cache", "_capture_hook_handles", "_capture_hooks_wired"}
    | {"_captured_pre_ln_residual", "_conversion_state", "_current_batch_size", "_derived_position_ids_ok", "_executing_container"}
    | {"_fired_hook_out", "_llada_container_hook_handles", "_llada_container_hooks_wired", "_mla_params_initialized", "_pattern"}
    | {"_output_capturing_hooks_installed", "_suppress_next_hook_in", "context_level", "is_caching", "warnings_issued"}
)
"""What TransformerLens and transformers note as they run: of the last call, or that hooks of their own are there."""
_TABLES: Final = frozenset(
    {"hook_dict", "mod_dict", "hooks_to_cache", "_hook_registry", "_hook_alias_registry", "_property_alias_registry"}
    | {"_hook_registry_initialized", "hook_aliases", "submodules", "real_components", "adapter", "_driver", "_weight_conversions"}
    | {"_keep_in_fp32_modules", "_keep_in_fp32_modules_strict", "_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_save"}
    | {"_keys_to_ignore_on_load_unexpected", "_no_split_modules", "_skip_keys_device_placement", "all_tied_weights_keys"}
    | {"_ep_plan", "_fsdp_plan", "_pp_plan", "_tp_plan"}
)
"""TransformerLens's tables of names, which lead to modules that are looked at themselves, and transformers' of how weights are read, saved
and placed."""
_OF_ANYONE: Final = _OF_TORCH | _PLACES
_OF_PACKAGES: Final = _OF_ANYONE | _TOLD_ELSEWHERE | _GROWING | _STATE | _TABLES
_PACKAGES: Final = ("transformer_lens.", "transformers.")
"""Packages in whose files functions are looked for that somebody put in place of their own."""
_OWN: Final = "_psr_lens_"
"""What attributes that psr_lens sets begin with."""


def settings_digest(model: Any) -> str | None:
    """xxh3_128 of what the modules of a model compute with besides weights; None if the content of something cannot be told.

    By the names of modules: their classes, numbers, texts, types, tensors that are no weights, functions, and objects, also those within
    lists, tuples, dictionaries and objects; the names of the modules inside them; and functions that somebody put in place of a class's or
    a Python module's own. Functions of the packages whose versions are recorded count by name, all others by their code, constants,
    defaults, what they close over, and the globals that they read. Left out is what a call changes by itself: the mode of training, the
    longest text that a RoPE has met, and notes that TransformerLens and transformers take as they run.

    Args:
        model: A model of TransformerLens or of plain transformers, or any module.

    Returns:
        32 hexadecimal digits, the same for a model that is loaded again, copied, or in another process.
    """
    return _look(model)[0]


def why_not_told(model: Any) -> str | None:
    """The module and its attribute whose content cannot be told, and why; None if there is none."""
    return _look(model)[1]


def _look(model: Any) -> tuple[str | None, str | None]:
    try:
        return digest_of(list(_settings(model))), None
    except NotToldError as error:
        return None, str(error)


# --- since it was loaded ------------------------------------------------------------------------------------------------------

_loaded: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


def record_settings(model: Any) -> None:
    """Note what the modules of a model compute with, now that it was compared with plain transformers."""
    _loaded[model] = settings_digest(model)


def is_changed(model: Any, settings: str | None) -> bool:
    """Whether a model that `load_model` has seen had other settings then than these, or either cannot be told."""
    return model in _loaded and (settings is None or settings != _loaded[model])


def is_altered(model: HookedModel) -> bool:
    """Whether something may act on it that is not the model as it was loaded, and for instance on each row of a batch differently."""
    return has_hooks(model) or is_changed(model, settings_digest(model))


# --- helpers ------------------------------------------------------------------------------------------------------------------


def _settings(model: Any) -> Iterator[Any]:
    named = dict(named_modules_of(model))
    names = {id(module): name or "model" for name, module in named.items()}
    contents = Contents(names | _weights(named), _configs(model), _settings_of)
    files: dict[str, None] = {}
    for name, module in named.items():
        if _is_hook_point(module):
            continue
        yield [name, *_of_one(name, module, names, contents)]
        files.update((each.__module__, None) for each in type(module).__mro__)
    for file in files:
        if file in sys.modules and file.startswith(_PACKAGES):
            for place, function in replaced_in_module(sys.modules[file]):
                yield [place, _told(contents, function, place)]


def _of_one(name: str, module: nn.Module, names: dict[int, str], contents: Contents) -> Iterator[Any]:
    yield _told(contents, type(module), f"{name}.__class__")
    yield [[inner, names[id(each)]] for inner, each in module._modules.items() if each is not None and not _is_hook_point(each)]
    held = _settings_of(module)
    for key in sorted(held):
        yield [key, _told(contents, held[key], f"{name}.{key}")]


def _settings_of(owner: Any) -> dict[str, Any]:
    """The attributes of a module, or of an object within one, that count; without weights and the modules inside it."""
    kinds = type(owner).__mro__
    left_out = (
        _OF_PACKAGES if any(each.__module__.startswith(_PACKAGES) for each in kinds) else _OF_ANYONE if nn.Module in kinds else ()
    )
    found = {name: value for name, value in vars(owner).items() if name not in left_out and not name.startswith(_OWN)}
    for name, value in list(found.items()):
        if isinstance(value, ObservedGenerate):  # psr_lens watches a call
            if value.replaced is None:
                del found[name]
            else:
                found[name] = value.replaced
        elif _is_hook_point(value):
            del found[name]
    return found


def _told(contents: Contents, value: Any, place: str) -> Any:
    try:
        return contents.of(value)
    except NotToldError as error:
        raise NotToldError(f"{place.removeprefix('.')}: {error}") from None
    except RecursionError:
        raise NotToldError(f"{place.removeprefix('.')}: it is nested too deeply") from None


def _weights(named: dict[str, nn.Module]) -> dict[int, str]:
    """Names of weights and buffers, which have a digest of their own, by address."""
    found: dict[int, str] = {}
    for name, module in named.items():
        for key, each in (*module._parameters.items(), *module._buffers.items()):
            if each is not None:
                found.setdefault(id(each), f"{name}.{key}")
    return found


def _configs(model: Any) -> dict[str, Any]:
    """The configs that have a digest of their own, and those within them."""
    found = {}
    for root in (model, getattr(model, "original_model", None)):
        for key in ("cfg", "config"):
            if (config := getattr(root, key, None)) is not None:
                found[key] = config
                found |= {f"{key}.{name}": each for name, each in vars(config).items() if hasattr(each, "to_dict")}
    return found


def _is_hook_point(value: object) -> bool:
    """Whether it is a hook point itself, not of a class of somebody's own; TransformerLens need not be there."""
    return type(value).__name__ == "HookPoint" and type(value).__module__ == "transformer_lens.hook_points"
