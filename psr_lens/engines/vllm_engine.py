"""A vLLM engine as what samples responses: each request says what steers it, so that thousands are in flight together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.optional import package
from psr_lens.errors import InputError
from psr_lens.generation.engine import Job
from psr_lens.generation.sampling_config import SamplingConfig
from psr_lens.models import HookedModel
from psr_lens.replacement import Steering
from psr_lens.replacement.content_digest import content_digest
from psr_lens.serving.requests import ALPHA, NAMES, STARTS

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
        """The version of vLLM and the type of the weights: samples differ with both."""
        return f"vllm {version_of_vllm()}, {self._dtype}"

    def check(self, model: HookedModel, steering: Steering | None) -> None:
        """Refuse another model than the engine's own, or a replacement that it does not serve.

        Raises:
            InputError: the sizes of the models differ, or the engine was started without the replacement.
        """
        theirs = self._config.hf_text_config
        for name, ours, their in (
            ("n_layers", int(model.cfg.n_layers), theirs.num_hidden_layers),
            ("d_model", int(model.cfg.d_model), theirs.hidden_size),
        ):
            if ours != their:
                raise InputError("engine", f"one whose model has {name}={their}", f"the model's own {name}={ours}")
        if steering is None:
            return
        served = getattr(self._llm.llm_engine.input_processor, "_psr_served", None)
        for replacement, _ in steering._weighted():
            if served is None or content_digest(replacement) not in served.replacements:
                serves = "none" if served is None else ", ".join(map(repr, served.named))
                raise InputError("engine", f"one that serves {serves}", f"one that serves this {replacement.method} too", _REMEDY)

    def respond(self, jobs: Sequence[Job], config: SamplingConfig, stops: frozenset[int]) -> list[tuple[int, ...]]:
        """Sample all responses; see `Engine`.

        Raises:
            InputError: `min_new_tokens` together with `stop`, which vLLM does not look for before that many tokens.
        """
        if config.stop and config.min_new_tokens:
            raise InputError(
                "sampling", "`stop` and `min_new_tokens`", "one of them with vLLM", "It looks for no text before that many tokens."
            )
        longest, limit = max((len(job.ids) + job.max_new_tokens for job in jobs), default=0), int(self._config.max_model_len)
        if longest > limit:
            raise InputError(
                "engine", f"one with max_model_len={limit}", f"at least {longest}, prompt and response", "Start it with more."
            )
        kind = package("vllm", "vllm").SamplingParams
        params = [kind(**sampling_arguments(job, config, stops), extra_args=steering_arguments(job)) for job in jobs]
        prompts = [{"prompt_token_ids": list(job.ids)} for job in jobs]
        found = self._llm.generate(prompts, params, use_tqdm=False)
        return [tuple(each.outputs[0].token_ids) for each in found]


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
    the same distribution by vLLM's own random numbers: every pair has a stream of its own, so that a seed gives the same responses again.

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
