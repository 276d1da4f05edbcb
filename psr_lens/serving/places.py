"""The places in vLLM where replacements take part, and what is called there in each of its processes.

| place | process | what happens there |
|---|---|---|
| `InputProcessor` | front end | the operator's artifacts are read; each request is checked, and says what steers it |
| `_gen_prompt_embeds_extra_hash_keys` | scheduler | blocks of the prefix cache that were steered get a key of their own |
| `Worker.load_model` | worker | gates are put on the model before it is compiled |
| `GPUModelRunner._prepare_inputs` | worker | the strengths of the batch are filled in |
| `GPUModelRunner._sample`, `_bookkeeping_sync` | worker | on a CPU, seeds of prompts that are read in parts are left alone |
| `VllmConfig.__post_init__` | front end | the digests of what was read are noted, so that no process serves something else |
| `VllmConfig.compute_hash` | all | a model compiled without gates, or with others, is not taken from the compile cache |

Where a vLLM has no such place, none is changed, and an engine that is to serve replacements does not start.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any, Final, cast

from psr_lens._utils.digests import digest_of
from psr_lens.errors import ArtifactError, InputError, ModelError, PsrLensError
from psr_lens.serving.requests import IN_FORCE, asks_to_be_steered, cache_key, in_force, is_ours
from psr_lens.serving.served import CONFIG, Served, served_by
from psr_lens.serving.steered_model import TokenStrengths, check_model, put_gates
from psr_lens.serving.wrapping import owner_of, wrap

TESTED: Final = ("0.32.0",)
"""Versions of vLLM that the tests ran on."""
_BEAM_SEARCHES: Final = (
    ("vllm.entrypoints.openai.completion.protocol", "CompletionRequest"),
    ("vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionRequest"),
)
_CLIENT_ERROR: Final = ("vllm.exceptions", "VLLMClientError")
_RUST: Final = "VLLM_USE_RUST_FRONTEND"
_TO_BEAMS: Final = "to_beam_search_params"
_NOTED: Final = "psr_digests"
"""The key of `additional_config` under which the digests of the replacements are noted that were read first."""

# --- the front end --------------------------------------------------------------------------------------------------------------


def _begin(original: Any, processor: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    processor._psr_served = served_by_engine(vllm_config)
    if processor._psr_served is not None:
        _refuse_beam_search()
    original(processor, vllm_config, *args, **kwargs)


def _refuse_beam_search() -> None:
    at = [owner_of(module, owner) for module, owner in _BEAM_SEARCHES]
    missing = [
        f"{module}.{_TO_BEAMS}" for place, (module, _) in zip(at, _BEAM_SEARCHES, strict=True) if not hasattr(place, _TO_BEAMS)
    ]
    if missing:
        raise ModelError("vllm: " + _lacks(missing))
    for place in at:
        wrap(place, _TO_BEAMS, _to_beam_search_params)


def _process_inputs(original: Any, processor: Any, *args: Any, **kwargs: Any) -> Any:
    request = original(processor, *args, **kwargs)
    params = request.sampling_params
    asked = None if params is None else params.extra_args
    if asked is None or not asks_to_be_steered(asked):
        return request
    length = len(request.prompt_embeds if request.prompt_token_ids is None else request.prompt_token_ids)
    try:
        found = in_force(processor._psr_served, asked, length, scores_prompt=params.prompt_logprobs is not None)
        if found and request.resumable:
            raise InputError("psr", "a prompt that goes on being streamed in", "a whole prompt, since steering starts at its end")
    except InputError as error:
        raise _refused_request()(str(error)) from error
    # `params` is the request's own copy, but its dictionary is the caller's. What was asked is left out: other processes get it
    # serialised, which integers beyond 64 bits cannot be.
    others = {key: value for key, value in asked.items() if not is_ours(key)}
    params.extra_args = others | {IN_FORCE: [list(each) for each in found]}
    return request


@cache
def _refused_request() -> Callable[[str], InputError]:
    """An `InputError` that vLLM's server answers with status 400; of errors that it does not know it makes status 500."""

    class RefusedRequestError(InputError, owner_of(*_CLIENT_ERROR)):  # type: ignore[misc]
        """A request asks to be steered in a way that is invalid."""

        def __init__(self, message: str) -> None:
            """Keep the message of another error."""
            Exception.__init__(self, message)

    return cast(Callable[[str], InputError], RefusedRequestError)


def _to_beam_search_params(original: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
    """Beam search is made of requests of its own, which would not be steered."""
    if asks_to_be_steered(request.vllm_xargs):
        raise InputError("use_beam_search", True, "no beam search in a request that is steered")
    return original(request, *args, **kwargs)


def served_by_engine(vllm_config: Any) -> Served | None:
    """The replacements that an engine is to serve; None if none.

    Raises:
        InputError: the configuration is invalid.
        ArtifactError: an artifact cannot be read, was made for another model, or is not the one that was read first.
        ModelError: the engine uses something that steering was not tried with.
    """
    served = served_by(vllm_config.additional_config)
    if served is not None:
        _check_engine(vllm_config)
        model = vllm_config.model_config
        check_model(model.architecture, model.hf_text_config, served)
        if vllm_config.additional_config.get(_NOTED, served.digests) != served.digests:
            raise ArtifactError(
                "vllm: the replacements in `additional_config['psr']` were saved anew while the engine started. Start it again."
            )
    return served


def _check_engine(config: Any) -> None:
    parallel = config.parallel_config
    drafts = config.speculative_config
    unsupported = {
        "tensor, pipeline, data or context parallelism": parallel.world_size > 1 or parallel.data_parallel_size > 1,
        "dual-batch overlap": parallel.enable_dbo,
        "LoRA": config.lora_config is not None,
        "a KV connector": config.kv_transfer_config is not None,
        "fast prefill by KV sharing": config.cache_config.kv_sharing_fast_prefill,
        "drafts by another method than ngram": drafts is not None and drafts.method != "ngram",
        "a pooling model": config.model_config.runner_type != "generate",
    }
    found = [what for what, used in unsupported.items() if used]
    if found:
        raise ModelError(f"vllm: replacements cannot be served together with {' and '.join(found)}. Start the engine without.")
    by_variable = {
        ("the V2 model runner", "VLLM_USE_V2_MODEL_RUNNER"): config.use_v2_model_runner,
        ("the Rust front end", _RUST): bool(os.environ.get(_RUST, "0").strip("0")),
    }
    for (what, variable), used in by_variable.items():
        if used:
            raise ModelError(f"vllm: replacements cannot be served with {what}. Start the engine with {variable}=0.")


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
        put_gates(runner.get_model(), runner.model_config.architecture, served, runner._psr_strengths.on_device)
    return loaded


def _prepare_inputs(original: Any, runner: Any, scheduled: Any, counts: Any, *args: Any, **kwargs: Any) -> Any:
    prepared = original(runner, scheduled, counts, *args, **kwargs)
    strengths = getattr(runner, "_psr_strengths", None)
    if strengths is not None:
        batch = runner.input_batch
        requests = [(name, runner.requests[name].sampling_params) for name in batch.req_ids]
        strengths.fill(requests, batch.num_computed_tokens_cpu[: len(requests)], counts)
    return prepared


def _with_seeds_in_use(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    """Put the random generators aside of prompts of which only a part was read, whose tokens are drawn and thrown away.

    vLLM draws with them too and then turns them back, which a generator on a CPU refuses with an error that ends the engine.
    """
    generators, discarded = runner.input_batch.generators, runner.discard_request_mask.np
    aside = {row: each for row, each in generators.items() if each.device.type == "cpu" and discarded[row]}
    for row in aside:
        del generators[row]
    try:
        return original(runner, *args, **kwargs)
    finally:
        generators.update(aside)


# --- all processes --------------------------------------------------------------------------------------------------------------


def _note_digests(original: Any, config: Any, *args: Any, **kwargs: Any) -> None:
    original(config, *args, **kwargs)
    try:
        served = served_by(config.additional_config)
    except PsrLensError:
        return  # the front end reads them too, and raises it where it is not wrapped in an error of pydantic's
    if served is not None:
        config.additional_config = {_NOTED: served.digests} | config.additional_config


def _compute_hash(original: Any, config: Any, *args: Any, **kwargs: Any) -> str:
    served = served_by(config.additional_config)
    if served is None:
        return cast(str, original(config, *args, **kwargs))
    given = config.additional_config
    try:
        config.additional_config = {key: value for key, value in given.items() if key != _NOTED}  # a graph holds no numbers
        found: str = original(config, *args, **kwargs)
    finally:
        config.additional_config = given
    return digest_of([found, served.graph_digest])[: len(found)]


# --- taking part ----------------------------------------------------------------------------------------------------------------

_PLACES: Final[tuple[tuple[str, str, str, Callable[..., Any]], ...]] = (
    ("vllm.config", "VllmConfig", "__post_init__", _note_digests),
    ("vllm.config", "VllmConfig", "compute_hash", _compute_hash),
    ("vllm.v1.core.kv_cache_utils", "", "_gen_prompt_embeds_extra_hash_keys", _hash_keys),
    ("vllm.v1.engine.input_processor", "InputProcessor", "__init__", _begin),
    ("vllm.v1.engine.input_processor", "InputProcessor", "process_inputs", _process_inputs),
    ("vllm.v1.worker.gpu_worker", "Worker", "load_model", _load_model),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_prepare_inputs", _prepare_inputs),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_sample", _with_seeds_in_use),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner", "_bookkeeping_sync", _with_seeds_in_use),
)
"""Module, class, function, and what is called in its place."""


def take_part() -> str:
    """Have vLLM call the functions above. Further calls have no effect.

    Returns:
        Why it is not possible with this version of vLLM, in which case nothing is changed; an empty text if all went well.
    """
    at = [owner_of(module, owner) for module, owner, _, _ in _PLACES]
    missing = [f"{module}.{name}" for place, (module, _, name, _) in zip(at, _PLACES, strict=True) if not hasattr(place, name)]
    if owner_of(*_CLIENT_ERROR) is None:
        missing.append(".".join(_CLIENT_ERROR))
    if missing:
        return _lacks(missing)
    for place, (_, _, name, wrapper) in zip(at, _PLACES, strict=True):
        wrap(place, name, wrapper)
    return ""


def _lacks(missing: list[str]) -> str:
    found = importlib.import_module("vllm").__version__
    return (
        f"this version ({found}) lacks {', '.join(missing)}, where replacements take part. Install one that psr_lens was tried with: "
        f"{', '.join(TESTED)}."
    )
