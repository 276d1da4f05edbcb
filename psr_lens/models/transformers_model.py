"""Reading a model as transformers reads it: config, weights, adapter and tokenizer, with transformers' own report of what it loaded."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.peft_utils import find_adapter_config_file

from psr_lens._utils.optional import package
from psr_lens.errors import MissingPackageError, ModelError, PsrLensError
from psr_lens.models.placement import Placement
from psr_lens.models.sources import Source, find_source

_SHOWN: Final = 6
"""How many names of tensors a message has."""

_SUMMED: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that are checked for NaN."""

_LONGEST: Final = 250
"""How many characters of another package's message are quoted."""

_TOKENIZER_FILES: Final = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json")
"""Files of which at least one belongs to every tokenizer."""


@contextmanager
def readable(source: Source, reader: str = "transformers") -> Iterator[None]:
    """Turn whatever transformers, TransformerLens or peft raise while they read a model into a `ModelError` of one sentence."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = in_short(error)
        if isinstance(error, OSError) and not source.is_local:
            raise ModelError(
                f"model: the weights of {source} could not be fetched or read ({reason}). "
                "Check the network and your access to the repository, or give a local folder."
            ) from error
        raise ModelError(f"model: {source} cannot be loaded by {reader} ({reason}).") from error


def in_short(error: BaseException) -> str:
    """The beginning of an error's message, in one line; transformers adds long advice, and torch every tensor that does not fit."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST].rstrip()} …"


# --- config -----------------------------------------------------------------------------------------------------------------


def read_config(source: Source) -> Any:
    """The model's config.

    Raises:
        ModelError: it cannot be read, or is of something else than a causal language model.
    """
    base = _trained_on(source)
    if base is not None:
        return read_config(base)
    with readable(source):
        config = AutoConfig.from_pretrained(source.location, **source.for_transformers())
    _check_causal(source, config)
    return config


def context_of(config: Any) -> int | None:
    """The context length in tokens that a config of transformers gives; None if the model has no limit."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"):
        if isinstance(found := getattr(text, name, None), int) and found > 0:
            return found
    return None


def architecture_of(config: Any) -> str:
    """The name of the class that the weights were saved from, or the type of the model if the config does not say."""
    return str((getattr(config, "architectures", None) or [config.model_type])[0])


def _model_class(config: Any) -> Any:
    from transformer_lens.model_bridge.sources.transformers import get_hf_model_class_for_architecture

    return get_hf_model_class_for_architecture(architecture_of(config))


def _check_causal(source: Source, config: Any) -> None:
    architecture, kind = architecture_of(config), _model_class(config).__name__
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    names = {name for each in causal for name in ([each] if isinstance(each, str) else each)}
    is_bare = architecture.endswith("Model") or architecture == config.model_type  # the report says whether the head is there
    if kind == "AutoModelForImageTextToText" or (
        kind == "AutoModelForCausalLM"
        and not getattr(config, "is_encoder_decoder", False)
        and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and (architecture in names or is_bare)
    ):
        return
    raise ModelError(
        f"model: {source} holds a {architecture}, which is not a causal language model. "
        "Give a model whose architecture ends with ForCausalLM or LMHeadModel."
    )


# --- weights ----------------------------------------------------------------------------------------------------------------


def read_weights(source: Source, placement: Placement, dtype: torch.dtype | str) -> Any:
    """The model as transformers loads it, in evaluation mode, with its adapter merged into it if there is one.

    Args:
        source: Where it is.
        placement: Where the weights go.
        dtype: Type of the weights; `"auto"` for the config's.

    Raises:
        ModelError: weights are missing, NaN or infinite, or cannot be read, or an adapter cannot be applied.
    """
    adapter = _adapter(source)
    model = _read(source, placement, dtype) if adapter is None else _adapted(source, adapter, placement, dtype)
    check_weights(model, f"the weights of {source}")
    return model if placement.is_spread or quantisation_of(model.config) else model.to(placement.device)


def check_weights(model: torch.nn.Module, whose: str) -> None:
    """Refuse weights that are NaN or infinite, which a `HookedTransformer`'s attention may hide: it takes NaN patterns for 0.

    Args:
        model: The model, each of whose weights is read once.
        whose: What the weights are called in the message.

    Raises:
        ModelError: some are; it names the tensors.
    """
    # Not the module's own method, which a bridge replaces; and weights on disk or quantised ones are left out.
    named = torch.nn.Module.named_parameters(model)
    wrong = [name for name, weight in named if weight.dtype in _SUMMED and not weight.is_meta and not _is_finite(weight)]
    if wrong:
        raise ModelError(
            f"model: {whose} are NaN or infinite in {_some(wrong)}. Give undamaged weights; "
            "those that are too large for float16 can be loaded with dtype='bfloat16' or 'float32'."
        )


def _is_finite(weight: torch.Tensor) -> bool:
    total = weight.detach().sum(dtype=torch.promote_types(weight.dtype, torch.float32))  # which reads it once, without a copy
    return bool(total.isfinite()) or bool(weight.isfinite().all())


def quantisation_of(config: Any) -> str | None:
    """The method by which the weights are quantised; None if they are not."""
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    found = found if isinstance(found, Mapping) else found.to_dict()
    return str(found.get("quant_method") or "an unknown method").rpartition(".")[2].lower()


def _read(source: Source, placement: Placement, dtype: torch.dtype | str) -> Any:
    config = read_config(source)
    method = quantisation_of(config)
    try:
        with readable(source):
            # Attention is computed step by step ("eager"), as a bridge needs it for its hooks.
            model, report = _class_of(config).from_pretrained(
                source.location,
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
                **source.for_transformers(),
                **placement.for_transformers(),
            )
    except ModelError as error:
        if method is None or source.gguf is not None:
            raise
        raise ModelError(
            f"model: the weights of {source} are quantised ({method}), and transformers cannot read them here "
            f"({in_short(error.__cause__ or error)}). Install what it names, or give weights that are not quantised."
        ) from error
    _check_report(source, model, report)
    if source.gguf is not None:  # transformers has turned the weights into plain ones; newer releases say otherwise
        model.hf_quantizer, model.is_quantized = None, False
        vars(model.config).pop("quantization_config", None)
    return model


def _class_of(config: Any) -> Any:
    found = _model_class(config)
    return found if found.__name__ == "AutoModelForImageTextToText" else AutoModelForCausalLM


def _check_report(source: Source, model: Any, report: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers had to make tensors up; it says so only in its log, which TransformerLens silences."""
    kind = type(model).__name__
    mismatched = [each[0] if isinstance(each, tuple) else each for each in report.get("mismatched_keys", ())]
    if absent := sorted({*report.get("missing_keys", ()), *mismatched}):
        raise ModelError(
            f"model: the weights of {source} lack {_some(absent)}, which {kind} needs; transformers would fill them with random "
            "numbers. Give the complete weights of a language model, with its head."
        )
    if errors := report.get("error_msgs"):
        raise ModelError(f"model: {source} cannot be loaded by transformers ({in_short(ValueError(errors[0]))}).")
    if unused := sorted(report.get("unexpected_keys", ())):
        warnings.warn(
            f"model: {kind} has no place for {_some(unused)} in the weights of {source}; transformers leaves them out.",
            RuntimeWarning,
            stacklevel=2,
        )


def _some(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more tensors" if len(names) > _SHOWN else "")


# --- adapters ---------------------------------------------------------------------------------------------------------------


def _adapter(source: Source) -> dict[str, Any] | None:
    """The settings of the adapter in a folder or repository; None if there is none."""
    if source.gguf is not None:
        return None
    with readable(source):
        found = find_adapter_config_file(source.location, local_files_only=source.is_local)
        return None if found is None else dict(json.loads(Path(found).read_text(encoding="utf-8")))


def _adapted(source: Source, adapter: Mapping[str, Any], placement: Placement, dtype: torch.dtype | str) -> Any:
    kind = str(adapter.get("peft_type", "")).replace("LORA", "LoRA")
    try:
        peft = package("peft", "peft")
    except MissingPackageError as error:
        raise ModelError(
            f"model: {source} holds an adapter ({kind}), and is a different model without it. {error} "
            "Alternatively, merge the adapter into the weights (`merge_and_unload` of peft), save them, and give that folder."
        ) from error
    with _base_of(source, adapter) as base:
        model = _read(base, placement, dtype)
    with readable(source, "peft"), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*adapter keys")  # missing or unexpected ones: peft only warns
        adapted = peft.PeftModel.from_pretrained(model, source.location)
        if hasattr(adapted, "merge_and_unload"):
            return adapted.merge_and_unload()
    raise ModelError(
        f"model: {source} holds an adapter ({kind}) that adds tokens or keys to what the model reads, so it cannot be merged into its "
        "weights. Give an adapter that changes weights, such as LoRA, or the base model with the prompt as text."
    )


def _trained_on(source: Source) -> Source | None:
    """The model that the adapter in a folder without weights was trained on; None for any other source."""
    if source.folder is None or source.gguf is not None or (source.folder / "config.json").is_file():
        return None
    return _named_base(source, _adapter(source) or {})


def _named_base(source: Source, adapter: Mapping[str, Any]) -> Source:
    name = str(adapter.get("base_model_name_or_path"))
    try:
        return find_source(name)
    except PsrLensError as error:
        raise ModelError(
            f"model: the adapter in {source} was trained on {name!r}, which cannot be found. "
            "Correct `base_model_name_or_path` in its adapter_config.json, or put the adapter into the folder of those weights."
        ) from error


@contextmanager
def _base_of(source: Source, adapter: Mapping[str, Any]) -> Iterator[Source]:
    """The model that an adapter is applied to: the weights beside it if there are any, else those that it names."""
    folder = source.folder
    if folder is None or not (folder / "config.json").is_file():
        yield _named_base(source, adapter)
        return
    with tempfile.TemporaryDirectory(prefix="psr_") as bare:  # transformers would put the adapter in by itself, unmerged
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                (Path(bare) / path.name).symlink_to(path.resolve())
        yield Source(bare, source.asked, source.name, is_local=True)


# --- tokenizer --------------------------------------------------------------------------------------------------------------


def read_tokenizer(source: Source) -> Any:
    """The tokenizer, or None if there is none: a model can be used without one until text is needed.

    Raises:
        ModelError: its files are there, but cannot be read.
    """
    folder = source.folder
    if folder is not None and source.gguf is None and not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
        base = _trained_on(source)
        return None if base is None else read_tokenizer(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.for_transformers())
        return tokenizer if source.gguf is None else _saved_and_read(tokenizer, source)
    except Exception as error:
        if not source.is_local and isinstance(error, OSError):
            return None
        raise ModelError(
            f"model: the tokenizer of {source} cannot be loaded by transformers ({in_short(error)}). "
            "Save a complete tokenizer there, or remove its files to load the model without one."
        ) from error


def _saved_and_read(tokenizer: Any, source: Source) -> Any:
    """A tokenizer that begins texts with its beginning-of-sequence token, if it has one.

    TransformerLens wants such a one, and would look for its files beside the `.gguf` file.
    """
    with tempfile.TemporaryDirectory(prefix="psr_") as folder:
        tokenizer.save_pretrained(folder)
        given = {} if tokenizer.bos_token is None else {"add_bos_token": True}
        found = AutoTokenizer.from_pretrained(folder, local_files_only=True, **given)
    found.name_or_path = found.init_kwargs["name_or_path"] = source.asked
    return found
