"""A vLLM engine as what samples responses: each request says what steers it, so that thousands are in flight together."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.digests import digest_of
from psr_lens._utils.optional import package
from psr_lens.errors import InputError, ModelError
from psr_lens.generation.engine import Job
from psr_lens.generation.sampling_config import SamplingConfig
from psr_lens.models import HookedModel, device_of, dtype_of, forward, tokenizer_of
from psr_lens.replacement import Steering
from psr_lens.replacement.content_digest import content_digest
from psr_lens.serving.requests import ALPHA, NAMES, STARTS

_PROMPTS, _TOKENS = 2, 16
"""Random prompts on which the models are compared, and their length."""
_APART = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.25}
"""Largest mean difference of log probabilities in each type: a few times what rounding gives. Other weights differ by far more."""
_LEAST_TEMPERATURE = 0.01
"""vLLM raises lower temperatures to this."""
_OF_DRAFTS = ("method", "model", "num_speculative_tokens", "rejection_sample_method", "draft_sample_method")
_REMEDY = (
    "Save it, and make the engine with `vllm.LLM(…, additional_config={'psr': {'pirate': 'pirate-psr'}})`, a name and the folder."
)


class VLLMEngine:
    """A `vllm.LLM` that samples for psr_lens; made by `psr.engines.vllm`."""

    def __init__(self, llm: Any) -> None:
        """Keep the `vllm.LLM`."""
        self._llm = llm
        self._config = llm.llm_engine.vllm_config.model_config

    def __repr__(self) -> str:
        """The model's name and type in a line."""
        return f"VLLMEngine({self._config.model}, {self._dtype})"

    @property
    def _dtype(self) -> str:
        return str(self._config.dtype).removeprefix("torch.")

    @property
    def identity(self) -> str:
        """The version of vLLM, the type of the weights, and a digest of what else in the configuration changes logits."""
        config = self._llm.llm_engine.vllm_config
        model = json.loads(self._config.hf_config.to_json_string(use_diff=False))
        drafts = config.speculative_config
        about = {
            "model": {name: value for name, value in model.items() if name != "_name_or_path"},
            "quantization": [str(self._config.quantization), _plain(getattr(self._config, "quantization_config", None))],
            "cache": [str(config.cache_config.cache_dtype), list(config.cache_config.kv_cache_dtype_skip_layers)],
            "drafts": None if drafts is None else {name: _plain(getattr(drafts, name, None)) for name in _OF_DRAFTS},
            "processors": [_plain(each) for each in self._config.logits_processors or ()],
            "installed": sorted(each.value for each in entry_points(group="vllm.logits_processors")),
        }
        return f"vllm {version_of_vllm()}, {self._dtype}, {digest_of(about)}"

    def check(self, model: HookedModel, steering: Steering | None, config: SamplingConfig) -> None:
        """Refuse another model than the engine's own, a replacement that it does not serve, or settings that mean something else in vLLM.

        The models are compared by what they do: the log probabilities of the tokens of random prompts.

        Raises:
            InputError: the models differ, the engine was started without the replacement, or it cannot sample like this.
        """
        _check_sampling(config)
        theirs = self._config.hf_text_config
        for name, ours, their in (
            ("n_layers", int(model.cfg.n_layers), theirs.num_hidden_layers),
            ("d_model", int(model.cfg.d_model), theirs.hidden_size),
        ):
            if ours != their:
                raise InputError("engine", f"one whose model has {name}={their}", f"the model's own {name}={ours}")
        served = getattr(self._llm.llm_engine.input_processor, "_psr_served", None)
        for replacement, _ in () if steering is None else steering._weighted():
            if served is None or content_digest(replacement) not in served.replacements:
                serves = "no replacements" if served is None else ", ".join(map(repr, served.named))
                expected = f"one that also serves this replacement ({replacement.method})"
                raise InputError("engine", f"one that serves {serves}", expected, _REMEDY)
        self._check_is_same(model)

    def _check_is_same(self, model: HookedModel) -> None:
        own = self._llm.llm_engine.get_tokenizer() if self._config.skip_tokenizer_init is False else None
        if own is not None and own.get_vocab() != tokenizer_of(model).get_vocab():
            raise InputError(
                "engine", "one with another vocabulary", "one that runs the same model", "Start it with the same folder."
            )
        size = min(int(model.cfg.d_vocab), int(self._config.hf_text_config.vocab_size))
        shape = (_PROMPTS, min(_TOKENS, int(self._config.max_model_len) - 1))
        ids = torch.randint(size, shape, generator=torch.Generator().manual_seed(0))
        ours, theirs = _log_probabilities(model, ids), self._log_probabilities(ids)
        apart = float((ours - theirs).abs().mean())
        allowed = max(_APART.get(each, 0.0) for each in (self._dtype, str(dtype_of(model)).removeprefix("torch.")))
        if not apart <= allowed:  # not a number is no agreement either
            raise InputError(
                "engine",
                f"one whose log probabilities differ from the model's by {apart:.2g} on average",
                f"at most {allowed:g}, as rounding brings about",
                "It runs other weights, or the same ones quantised: load both from the same folder.",
            )

    def _log_probabilities(self, ids: Int[Tensor, "prompt token"]) -> Float[Tensor, "prompt next_token"]:
        params = package("vllm", "vllm").SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        found = self._llm.generate([{"prompt_token_ids": row} for row in ids.tolist()], params, use_tqdm=False)
        return torch.tensor(
            [
                [at[token].logprob for at, token in zip(each.prompt_logprobs[1:], row[1:], strict=True)]
                for each, row in zip(found, ids.tolist(), strict=True)
            ]
        )

    def respond(self, jobs: Sequence[Job], config: SamplingConfig, stops: frozenset[int]) -> list[tuple[int, ...]]:
        """Sample all responses; see `Engine`.

        Raises:
            InputError: a prompt and its response are longer than the engine takes.
            ModelError: a response was broken off, or logits are not finite.
        """
        longest, limit = max((len(job.ids) + job.max_new_tokens for job in jobs), default=0), int(self._config.max_model_len)
        if longest > limit:
            raise InputError(
                "engine", f"one with max_model_len={limit}", f"at least {longest}, prompt and response", "Start it with more."
            )
        kind = package("vllm", "vllm").SamplingParams
        params = [kind(**sampling_arguments(job, config, stops), extra_args=steering_arguments(job)) for job in jobs]
        prompts = [{"prompt_token_ids": list(job.ids)} for job in jobs]
        found = self._llm.generate(prompts, params, use_tqdm=False)
        return [_tokens(each.outputs[0]) for each in found]


def _tokens(found: Any) -> tuple[int, ...]:
    if found.finish_reason not in ("stop", "length"):
        raise ModelError(f"vllm: a response was broken off ({found.finish_reason}). The engine's log says why.")
    if not math.isfinite(found.cumulative_logprob):
        raise ModelError("vllm: the model gave logits that are not finite. A smaller `alpha` or dtype='float32' may help.")
    return tuple(found.token_ids)


@torch.inference_mode()
def _log_probabilities(model: HookedModel, ids: Int[Tensor, "prompt token"]) -> Float[Tensor, "prompt next_token"]:
    at = ids.to(device_of(model))
    logits = forward(model, at, torch.ones_like(at))[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, at[:, 1:, None])[..., 0].cpu()


def _check_sampling(config: SamplingConfig) -> None:
    if config.stop and config.min_new_tokens:
        raise InputError(
            "sampling", "`stop` and `min_new_tokens`", "one of them with vLLM", "It looks for no text before that many tokens."
        )
    if 0 < config.temperature < _LEAST_TEMPERATURE:
        raise InputError(
            "temperature", config.temperature, f"0, or at least {_LEAST_TEMPERATURE} with vLLM", "It raises lower ones to that."
        )
    if config.temperature and config.min_p and (config.top_p < 1 or config.top_k):
        raise InputError(
            "sampling",
            "`min_p` together with `top_p` or `top_k`",
            "one of them with vLLM",
            "It applies `min_p` first, transformers last.",
        )


def _plain(given: Any) -> str:
    """A setting as text that is the same in every process: classes and functions by name."""
    return f"{given.__module__}.{given.__qualname__}" if hasattr(given, "__qualname__") else str(given)


def sampling_arguments(job: Job, config: SamplingConfig, stops: frozenset[int]) -> dict[str, Any]:
    """The settings of sampling under vLLM's names; HTTP requests have the same."""
    return {
        "temperature": float(config.temperature),
        "max_tokens": job.max_new_tokens,
        "min_tokens": min(config.min_new_tokens, job.max_new_tokens),
        "top_p": float(config.top_p),
        "top_k": config.top_k,
        "min_p": float(config.min_p),
        "repetition_penalty": float(config.repetition_penalty),
        "seed": int(np.random.default_rng((config.seed, job.stream)).integers(2**62)),
        "logprobs": 0,  # those of the sampled tokens, which are not finite if logits are not
        "stop": list(config.stop),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "stop_token_ids": sorted(stops),
        "ignore_eos": True,  # the model's end tokens are among `stops`
    }


def steering_arguments(job: Job) -> dict[str, Any] | None:
    """What steers a response, as `psr_lens.serving.requests` reads it: each replacement by what it does, not by a name."""
    if job.steering is None:
        return None
    parts = job.steering._weighted()
    spans = {replacement.span for replacement, _ in parts}
    return {
        NAMES: [content_digest(replacement) for replacement, _ in parts],
        ALPHA: [job.alpha * factor for _, factor in parts],
        **{key: job.starts[span] for key, span in STARTS.items() if span in spans},
    }


def version_of_vllm() -> str:
    """The version of vLLM, of whichever build is installed."""
    return str(package("vllm", "vllm").__version__)


@checks_arguments
def vllm(llm: Any) -> VLLMEngine:
    """A vLLM engine that samples responses in place of the model, for the functions with an argument `engine`.

    Greedy responses have the tokens that the model itself gives, up to ties and to the type of the weights. Sampled ones are drawn from
    the same distribution by vLLM's own random numbers: every pair has a stream of its own. Logits depend in their last bits on what else is
    in a batch, so a seed is sure to give the same responses again only to the same requests together, or with `VLLM_BATCH_INVARIANT=1`.

    Args:
        llm: A `vllm.LLM` of the same model, started with the replacements that it is to steer with:
            `LLM(folder, additional_config={"psr": {"pirate": "pirate-psr"}})`.

    Raises:
        InputError: `llm` is not a `vllm.LLM`.
        MissingPackageError: vLLM is not installed.

    Example:
        >>> from vllm import LLM  # doctest: +SKIP
        >>> llm = LLM("my-model", additional_config={"psr": {"pirate": "pirate-psr"}})  # doctest: +SKIP
        >>> answers = psr.generate(model, pairs, pirate, engine=psr.engines.vllm(llm))  # doctest: +SKIP
    """
    if not isinstance(llm, package("vllm", "vllm").LLM):
        raise InputError("llm", type(llm).__name__, "a vllm.LLM")
    return VLLMEngine(llm)
