"""What both kinds of vLLM engines share: how a job becomes a request, and what is refused before."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.generation.engine import Job
from psr_lens.generation.sampling_config import SamplingConfig
from psr_lens.models import HookedModel, device_of, dtype_of, forward
from psr_lens.replacement import Steering
from psr_lens.replacement.content_digest import content_digest
from psr_lens.serving.about_engine import AboutEngine
from psr_lens.serving.requests import ALPHA, NAMES, STARTS

_PROMPTS, _TOKENS = 2, 16
"""Random prompts on which the models are compared, and their length."""
_APART: Final = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.25}
"""Largest mean difference of log probabilities in each type: a few times what rounding gives. Other weights differ by far more."""
_LEAST_TEMPERATURE: Final = 0.01
"""vLLM raises lower temperatures to this."""

LogProbabilities = Callable[[Int[Tensor, "prompt token"]], Float[Tensor, "prompt next_token"]]


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


def check_length(jobs: Collection[Job], limit: int) -> None:
    """Refuse prompts that do not fit with their responses.

    Raises:
        InputError: a prompt and its response are longer than `limit` tokens.
    """
    longest = max((len(job.ids) + job.max_new_tokens for job in jobs), default=0)
    if longest > limit:
        raise InputError(
            "engine", f"one with max_model_len={limit}", f"at least {longest}, prompt and response", "Start it with more."
        )


def check_sampling(config: SamplingConfig) -> None:
    """Refuse settings that mean something else in vLLM.

    Raises:
        InputError: there are such settings.
    """
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


def check_sizes(model: HookedModel, about: AboutEngine) -> None:
    """Refuse an engine that runs a model of other sizes.

    Raises:
        InputError: it does.
    """
    for name, ours, their in (
        ("n_layers", int(model.cfg.n_layers), about.n_layers),
        ("d_model", int(model.cfg.d_model), about.d_model),
    ):
        if ours != their:
            raise InputError("engine", f"one whose model has {name}={their}", f"the model's own {name}={ours}")


def check_served(steering: Steering | None, digests: Collection[str], names: Collection[str], remedy: str) -> None:
    """Refuse a replacement that an engine does not serve.

    Args:
        steering: What is to steer.
        digests: Digests of what the engine serves.
        names: Their names.
        remedy: What to do.

    Raises:
        InputError: the engine was started without it.
    """
    for replacement, _ in () if steering is None else steering._weighted():
        if content_digest(replacement) not in digests:
            serves = ", ".join(map(repr, names)) or "no replacements"
            raise InputError(
                "engine", f"one that serves {serves}", f"one that also serves this replacement ({replacement.method})", remedy
            )


def check_same_model(model: HookedModel, about: AboutEngine, log_probabilities: LogProbabilities) -> None:
    """Refuse an engine that runs another model: the log probabilities of the tokens of random prompts are compared.

    Raises:
        InputError: they differ by more than rounding does.
    """
    size = min(int(model.cfg.d_vocab), about.d_vocab)
    shape = (_PROMPTS, min(_TOKENS, about.max_model_len - 1))
    ids = torch.randint(size, shape, generator=torch.Generator().manual_seed(0))
    apart = float((_log_probabilities(model, ids) - log_probabilities(ids)).abs().mean())
    allowed = max(_APART.get(each, 0.0) for each in (about.dtype, str(dtype_of(model)).removeprefix("torch.")))
    if not apart <= allowed:  # not a number is no agreement either
        raise InputError(
            "engine",
            f"one whose log probabilities differ from the model's by {apart:.2g} on average",
            f"at most {allowed:g}, as rounding brings about",
            "It runs other weights, or the same ones quantised: load both from the same folder.",
        )


@torch.inference_mode()
def _log_probabilities(model: HookedModel, ids: Int[Tensor, "prompt token"]) -> Float[Tensor, "prompt next_token"]:
    at = ids.to(device_of(model))
    logits = forward(model, at, torch.ones_like(at))[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, at[:, 1:, None])[..., 0].cpu()
