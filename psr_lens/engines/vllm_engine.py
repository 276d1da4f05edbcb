"""A vLLM engine as what samples responses: each request says what steers it, so that thousands are in flight together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.optional import package
from psr_lens.engines.vllm_requests import (
    check_length,
    check_same_model,
    check_sampling,
    check_served,
    check_sizes,
    sampling_arguments,
    steering_arguments,
)
from psr_lens.engines.vllm_server import VLLMServer
from psr_lens.errors import InputError, ModelError
from psr_lens.generation.engine import Job
from psr_lens.generation.sampling_config import SamplingConfig
from psr_lens.models import HookedModel, tokenizer_of
from psr_lens.replacement import Steering
from psr_lens.serving.about_engine import AboutEngine, about_engine

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
        return f"VLLMEngine({self._config.model}, {self._about.dtype})"

    @property
    def _about(self) -> AboutEngine:
        return about_engine(self._llm.llm_engine.vllm_config)

    @property
    def identity(self) -> str:
        """The version of vLLM, the type of the weights, and a digest of what else in the configuration changes logits."""
        return self._about.identity

    def check(self, model: HookedModel, steering: Steering | None, config: SamplingConfig) -> None:
        """Refuse another model than the engine's own, a replacement that it does not serve, or settings that mean something else in vLLM.

        The models are compared by what they do: the log probabilities of the tokens of random prompts.

        Raises:
            InputError: the models differ, the engine was started without the replacement, or it cannot sample like this.
        """
        check_sampling(config)
        check_sizes(model, self._about)
        served = getattr(self._llm.llm_engine.input_processor, "_psr_served", None)
        digests, names = ((), ()) if served is None else (served.replacements, served.named)
        check_served(steering, digests, names, _REMEDY)
        own = self._llm.llm_engine.get_tokenizer() if self._config.skip_tokenizer_init is False else None
        if own is not None and own.get_vocab() != tokenizer_of(model).get_vocab():
            raise InputError(
                "engine", "one with another vocabulary", "one that runs the same model", "Start it with the same folder."
            )
        check_same_model(model, self._about, self._log_probabilities)

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
        check_length(jobs, self._about.max_model_len)
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


@checks_arguments
def vllm(llm: Any, *, api_key_env: str | None = None) -> VLLMEngine | VLLMServer:
    """A vLLM engine or server that samples responses in place of the model, for the functions with an argument `engine`.

    Greedy responses have the tokens that the model itself gives, up to ties and to the type of the weights. Sampled ones are drawn from
    the same distribution by vLLM's own random numbers: every pair has a stream of its own. Logits depend in their last bits on what else is
    in a batch, so a seed is sure to give the same responses again only to the same requests together, or with `VLLM_BATCH_INVARIANT=1`.

    Args:
        llm: A `vllm.LLM` of the same model, started with the replacements that it is to steer with:
            `LLM(folder, additional_config={"psr": {"pirate": "pirate-psr"}})`. Or the address of a server that `psr-lens serve` started
            with them, `"http://127.0.0.1:8000/v1"`; vLLM need not be installed then.
        api_key_env: Environment variable with the key of the server's API; None for a server without one.

    Raises:
        InputError: `llm` is neither a `vllm.LLM` nor an address, or there is no such variable, or its value cannot be sent.
        ModelError: the server does not answer, or was started without psr_lens's middleware, or with another version of it.
        MissingPackageError: `llm` is no address, and vLLM is not installed.

    Example:
        >>> from vllm import LLM  # doctest: +SKIP
        >>> llm = LLM("my-model", additional_config={"psr": {"pirate": "pirate-psr"}})  # doctest: +SKIP
        >>> answers = psr.generate(model, pairs, pirate, engine=psr.engines.vllm(llm))  # doctest: +SKIP

        A server, whose key is in the variable `VLLM_API_KEY`:

        >>> server = psr.engines.vllm("http://127.0.0.1:8000/v1", api_key_env="VLLM_API_KEY")  # doctest: +SKIP
        >>> answers = psr.generate(model, pairs, pirate, engine=server)  # doctest: +SKIP
    """
    if isinstance(llm, str):
        return VLLMServer(llm, api_key_env)
    if not isinstance(llm, package("vllm", "vllm").LLM):
        raise InputError("llm", type(llm).__name__, "a vllm.LLM, or the address of a server")
    if api_key_env is not None:
        raise InputError("api_key_env", api_key_env, "None with a vllm.LLM, which asks for no key")
    return VLLMEngine(llm)
