"""The plugin itself: what vLLM calls in each of its processes, and the places in vLLM where replacements take part.

| place | process | what happens there |
|---|---|---|
| `InputProcessor` | front end | the operator's artifacts are read; each request is checked, and says what steers it |
| `_gen_prompt_embeds_extra_hash_keys` | scheduler | blocks of the prefix cache that were steered get a key of their own |
| `Worker.load_model` | worker | gates are put on the model before it is compiled |
| `GPUModelRunner._prepare_inputs` | worker | the strengths of the batch are filled in |
| `VllmConfig.compute_hash` | all | a model compiled without gates, or with others, is not taken from the compile cache |

Where a vLLM has no such place, none is changed, and an engine that is to serve replacements does not start.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, Final

from psr_lens._utils.digests import digest_of
from psr_lens.errors import InputError, ModelError
from psr_lens.serving.requests import IN_FORCE, asks_to_be_steered, cache_key, in_force
from psr_lens.serving.served import CONFIG, Served, served_by
from psr_lens.serving.steered_model import TokenStrengths, check_model, put_gates

TESTED: Final = ("0.32.0",)
"""Versions of vLLM that the tests ran on."""
_BEAM_SEARCHES: Final = (
    ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest"),
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest"),
)

# --- the front end --------------------------------------------------------------------------------------------------------------


def _begin(original: Any, processor: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    processor._psr_served = served_by_engine(vllm_config)
    for module, owner in _BEAM_SEARCHES:
        at = _owner(module, owner)
        if at is not None or processor._psr_served is not None:
            _wrap(at, "to_beam_search_params", _to_beam_search_params)
    original(processor, vllm_config, *args, **kwargs)


def _process_inputs(original: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
    request = original(processor, *args, **kwargs)
    params = request.sampling_params
    asked = None if params is None else params.extra_args
    if asked is None or not asks_to_be_steered(asked):
        return request
    length = len(request.prompt_embeds if request.prompt_token_ids is None else request.prompt_token_ids)
    found = in_force(processor._psr_served, asked, length)
    if found and request.resumable:
        raise InputError("psr", "a prompt that goes on being streamed in", "a whole prompt, since steering starts at its end")
    # `params` is the request's own copy, but its dictionary is the caller's.
    params.extra_args = asked | {IN_FORCE: [list(each) for each in found]}
    return request


def _to_beam_search_params(original: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Beam search is made of requests of its own, which would not be steered."""
    if asks_to_be_steered(request.vllm_xargs):
        raise InputError("use_beam_search", True, "no beam search in a request that is steered")
    return original(request, *args, **kwargs)


def served_by_engine(vllm_config: Any) -> Served | None:
    """The replacements that an engine is to serve; None if none.

    Raises:
        InputError: the configuration is invalid.
        ArtifactError: an artifact cannot be read, or was made for another model.
        ModelError: the engine uses something that steering was not tried with.
    """
    served = served_by(vllm_config.additional_config)
    if served is not None:
        _check_engine(vllm_config)
        model = vllm_config.model_config
        check_model(model.architecture, model.hf_text_config, served)
    return served


def _check_engine(config: Any) -> None:
    parallel = config.parallel_config
    unsupported = {
        "the V2 model runner (start with VLLM_USE_V2_MODEL_RUNNER=0)": config.use_v2_model_runner,
        "tensor, pipeline, data or context parallelism": parallel.world_size > 1 or parallel.data_parallel_size > 1,
        "dual-batch overlap": parallel.enable_dbo,
        "LoRA": config.lora_config is not None,
        "a KV connector": config.kv_transfer_config is not None,
        "fast prefill by KV sharing": config.cache_config.kv_sharing_fast_prefill,
        "the front end in Rust": bool(os.environ.get("VLLM_USE_RUST_FRONTEND", "0").strip("0")),
        "a pooling model": config.model_config.runner_type != "generate",
    }
    found = [what for what, used in unsupported.items() if used]
    if found:
        raise ModelError(f"vllm: replacements cannot be served together with {' and '.join(found)}. Start the engine without it.")


# --- the scheduler --------------------------------------------------------------------------------------------------------------


def _hash_keys(original: Any, request: Any, start: int, end: int) -> list[tuple[str, bytes]]:
    keys: list[tuple[str, bytes]] = original(request, start, end)
    params = request.sampling_params
    steering = (params.extra_args or {}).get(IN_FORCE) if params is not None else None
    key = cache_key(steering, end) if steering else None
    return keys if key is None else [*keys, (CONFIG, key)]


# --- the worker -----------------------------------------------------------------------------------------------------------------


def _load_model(original: Any, worker: Any, *args: Any, **kwargs: Any) -> Any:
    loaded = original(worker, *args, **kwargs)
    served = served_by_engine(worker.vllm_config)
    if served is not None:
        runner = worker.model_runner
        runner._psr_strengths = TokenStrengths(served, runner.max_num_tokens, runner.device)
        put_gates(runner.get_model(), runner.model_config.hf_text_config, served, runner._psr_strengths.on_device)
    return loaded


def _prepare_inputs(original: Any, runner: Any, scheduled: Any, counts: Any, *args: Any, **kwargs: Any) -> Any:
    prepared = original(runner, scheduled, counts, *args, **kwargs)
    strengths = getattr(runner, "_psr_strengths", None)
    if strengths is not None:
        batch = runner.input_batch
        requests = [(name, runner.requests[name].sampling_params) for name in batch.req_ids]
        strengths.fill(requests, batch.num_computed_tokens_cpu[: len(requests)], counts)
    return prepared


# --- all processes --------------------------------------------------------------------------------------------------------------


def _compute_hash(original: Any, config: Any, *args: Any, **kwargs: Any) -> str:
    found: str = original(config, *args, **kwargs)
    served = served_by(config.additional_config)
    return found if served is None else digest_of([found, served.graph_digest])[: len(found)]


# --- taking part ----------------------------------------------------------------------------------------------------------------

_PLACES: Final[tuple[tuple[str, str, str, Callable[..., Any]], ...]] = (
    ("vllm.config", "VllmConfig", "compute_hash", _compute_hash),
    ("vllm.v1.core.kv_cache_utils", "", "_gen_prompt_embeds_extra_hash_keys", _hash_keys),
    ("vllm.v1.engine.input_processor", "InputProcessor", "__init__", _begin),
    ("vllm.v1.engine.input_processor", "InputProcessor", "process_inputs", _process_inputs),
    ("vllm.v1.worker.gpu_worker", "Worker", "load_model", _load_model),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_prepare_inputs", _prepare_inputs),
)
"""Module, class, function, and what is called in its place."""


def register() -> None:
    """Take part in vLLM; the entry point in the group `vllm.general_plugins`. Further calls have no effect."""
    at = [_owner(module, owner) for module, owner, _, _ in _PLACES]
    missing = [f"{module}.{name}" for place, (module, _, name, _) in zip(at, _PLACES, strict=True) if not hasattr(place, name)]
    if missing:
        _wrap(_owner("vllm.config", "VllmConfig"), "__post_init__", functools.partial(_refuse, missing))
        return
    for place, (_, _, name, wrapper) in zip(at, _PLACES, strict=True):
        _wrap(place, name, wrapper)


def _owner(module: str, owner: str) -> Any:
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    return getattr(found, owner, None) if owner else found


def _wrap(at: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Have `wrapper(original, *arguments)` called in place of a function or method."""
    original = getattr(at, name)
    if hasattr(original, "_psr_lens"):
        return

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    wrapped._psr_lens = True  # type: ignore[attr-defined]
    setattr(at, name, wrapped)


def _refuse(missing: list[str], original: Any, config: Any, *args: Any, **kwargs: Any) -> None:
    original(config, *args, **kwargs)
    if CONFIG in (config.additional_config or {}):
        found = importlib.import_module("vllm").__version__
        raise ModelError(
            f"vllm: this version ({found}) lacks {', '.join(missing)}, where replacements take part. Install one that psr_lens "
            f"was tried with: {', '.join(TESTED)}."
        )
