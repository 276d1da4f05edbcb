"""Settings of a judge that is a language model: the model, its server, sampling, retries; and the requests and tokens it has used."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from psr_lens._utils.arguments import fits
from psr_lens._utils.numbers import is_real, is_whole, use_plain_numbers
from psr_lens._utils.server_settings import check_address, check_variable
from psr_lens._utils.yaml_config import KnownSettings
from psr_lens.errors import InputError


@dataclass(frozen=True)
class Backoff:
    """How long to wait before a request is retried, in seconds; waits double and are jittered.

    Example:
        >>> psr.judges.llm("Is this polite? {answer}", base_url="http://localhost:8000/v1", backoff=psr.judges.Backoff(longest=5))
        LLMJudge('gpt-4.1-mini', trait and coherence, base_url='http://localhost:8000/v1')
    """

    first: float = 0.5
    """Wait before the first retry; doubled for each further one."""
    longest: float = 30.0
    """Upper limit of the doubled wait."""
    patience: float = 120.0
    """Longest wait that a server may ask for by Retry-After; the request fails if it asks for more."""

    def __post_init__(self) -> None:
        """Check the waits."""
        for each in fields(self):
            _check_number(f"backoff.{each.name}", getattr(self, each.name), 0)


@dataclass(frozen=True)
class LLMSettings(KnownSettings):
    """Which language model judges, and how it is asked; the keyword arguments of `psr.judges.llm`.

    Example:
        >>> psr.judges.LLMSettings(model="gpt-4.1-mini", max_tokens=8).concurrency
        16
    """

    model: str = "gpt-4.1-mini"
    """The model's name at its server."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server, such as `http://localhost:8000/v1`; None for `OPENAI_BASE_URL`, else OpenAI's own."""
    api_key_env: str | None = None
    """Environment variable whose key is sent to `base_url`, whatever it is. None sends only a key that belongs to the address: that of
    `PSR_LENS_API_KEYS` for it, or `OPENAI_API_KEY` for OpenAI's own. A key is read when it is needed, and stored nowhere."""
    temperature: float = 0.0
    """Sampling temperature."""
    max_tokens: int = 16
    """Largest number of tokens in a reply; a reasoning model needs many more."""
    seed: int | None = 0
    """Seed of the server's sampling; None sends none."""
    logprobs: bool | Literal["auto"] = "auto"
    """Weight scores by token probabilities: False never; True always, an error if the server returns none; `"auto"` if it does."""
    concurrency: int = 16
    """Largest number of requests at a time."""
    max_retries: int = 5
    """Largest number of retries after 408, 409, 425, 429, 5xx, a time-out, a lost connection or a malformed answer."""
    timeout: float = 60.0
    """Time limit of one attempt, in seconds."""
    backoff: Backoff = field(default_factory=Backoff)
    """Waits between attempts; a server's Retry-After is respected."""

    def __post_init__(self) -> None:
        """Check the settings."""
        use_plain_numbers(self)
        if not isinstance(self.model, str) or not self.model.strip() or not self.model.isprintable():
            raise InputError("model", repr(self.model), "the name of a model at the server")
        if not fits(self.logprobs, bool | Literal["auto"]):
            raise InputError("logprobs", repr(self.logprobs), "True, False or 'auto'")
        for name, least in (("max_tokens", 1), ("concurrency", 1), ("max_retries", 0)):
            value = getattr(self, name)
            if not is_whole(value) or value < least:
                raise InputError(name, repr(value), f"a whole number, {least} or more")
        if self.seed is not None and not is_whole(self.seed):
            raise InputError("seed", repr(self.seed), "a whole number, or None")
        _check_number("temperature", self.temperature, 0)
        _check_number("timeout", self.timeout, 0.001)
        if not isinstance(self.backoff, Backoff):
            raise InputError("backoff", repr(self.backoff), "a `psr_lens.judges.Backoff`, such as `Backoff(first=1.0)`")
        if self.base_url is not None:
            expected = "an address such as 'http://localhost:8000/v1'"
            if not isinstance(self.base_url, str):
                raise InputError("base_url", type(self.base_url).__name__, expected)
            check_address("base_url", self.base_url, expected)
        if self.api_key_env is not None:
            check_variable(self.api_key_env)

    @property
    def address(self) -> str | None:
        """Where requests go; None for OpenAI's own server."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or None


@dataclass(frozen=True)
class LLMUsage:
    """What a judge has used so far.

    Example:
        >>> psr.judges.llm("Is this polite? {answer}", base_url="http://localhost:8000/v1").usage
        LLMUsage(requests=0, prompt_tokens=0, completion_tokens=0, cached=0, failed=0)
    """

    requests: int = 0
    """Requests sent, retries included."""
    prompt_tokens: int = 0
    """Prompt tokens, as the server counts them."""
    completion_tokens: int = 0
    """Reply tokens, as the server counts them."""
    cached: int = 0
    """Replies taken from the cache, without a request."""
    failed: int = 0
    """Prompts without a reply after all retries."""

    def __add__(self, other: LLMUsage) -> LLMUsage:
        """The sum of both."""
        return LLMUsage(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)})


def _check_number(name: str, value: Any, least: float) -> None:
    if not is_real(value) or not least <= value < float("inf"):
        raise InputError(name, repr(value), f"a finite number, {least} or more")
