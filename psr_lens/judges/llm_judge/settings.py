"""How a judge model is asked: settings, waits and what asking has cost."""

from __future__ import annotations

import os
import random
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from psr_lens.errors import InputError, JudgeError

_NAME: Final = re.compile(r"[A-Z_][A-Z0-9_]*")
NO_KEY: Final = "none"
"""What is sent where there is no key: the client wants something to send, and local servers do not look at it."""


@dataclass(frozen=True)
class Backoff:
    """How long to wait before asking again, in seconds."""

    first: float = 0.5
    """Before the second attempt; doubled at each further one."""
    longest: float = 30.0
    """Most that the doubling comes to."""
    patience: float = 120.0
    """Longest wait that a server may ask for by Retry-After; if it asks for more, the request has failed."""

    def __post_init__(self) -> None:
        """Refuse waits that cannot be meant."""
        for name in ("first", "longest", "patience"):
            _check_number(f"backoff.{name}", getattr(self, name), 0)

    def wait(self, attempt: int, jitter: random.Random) -> float:
        """Seconds to wait after attempt number `attempt`, from 0: between a half and the whole of the doubled wait."""
        return float(min(self.longest, self.first * 2.0 ** min(attempt, 60)) * jitter.uniform(0.5, 1.0))


@dataclass(frozen=True)
class LLMSettings:
    """How a judge model is asked."""

    model: str
    """The model's name at its server."""
    base_url: str | None = None
    """Address of an OpenAI-compatible server, such as `http://localhost:8000/v1`; None for `OPENAI_BASE_URL`, else OpenAI's own."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with the key, which is read when it is needed and kept nowhere; None sends none."""
    temperature: float = 0.0
    """Softmax temperature."""
    max_tokens: int = 16
    """Most tokens of a reply; a model that thinks before it answers needs many more."""
    seed: int | None = 0
    """Seed of the server's sampling; None sends none."""
    logprobs: bool | Literal["auto"] = "auto"
    """Weight scores by the tokens' probabilities: never, always (an error if the server gives none), or `"auto"`, where it does."""
    concurrency: int = 16
    """Most requests at one time."""
    max_retries: int = 5
    """Most further attempts at a request that failed for a reason that may pass."""
    timeout: float = 60.0
    """Seconds that one attempt may take."""
    backoff: Backoff = field(default_factory=Backoff)
    """Waits between attempts."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if not isinstance(self.model, str) or not self.model.strip() or not self.model.isprintable():
            raise InputError("model", repr(self.model), "the name of a model at the server")
        if self.logprobs not in (True, False, "auto"):
            raise InputError("logprobs", repr(self.logprobs), "True, False or 'auto'")
        for name, least in (("max_tokens", 1), ("concurrency", 1), ("max_retries", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(name, repr(value), f"a whole number, {least} or more")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int)):
            raise InputError("seed", repr(self.seed), "a whole number, or None")
        _check_number("temperature", self.temperature, 0)
        _check_number("timeout", self.timeout, 0.001)
        if self.base_url is not None:
            _check_address(self.base_url)
        if self.api_key_env is not None and not (isinstance(self.api_key_env, str) and _NAME.fullmatch(self.api_key_env)):
            raise InputError(
                "api_key_env",
                "something that is no such name (not shown, in case it is the key)",
                "the name of an environment variable, in capitals",
                "Put the key into that variable, never into the program.",
            )

    @property
    def address(self) -> str | None:
        """Where requests go; None for OpenAI's own server."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or None

    def key(self) -> str:
        """The key, fresh from the environment.

        Raises:
            JudgeError: it is not there although the server wants one, or it cannot be sent.
        """
        value = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if value and not (value.isascii() and value.isprintable() and " " not in value):
            raise JudgeError(f"api_key_env: the value of {self.api_key_env} has characters that no key has. Set it anew.")
        if not value and self.api_key_env and self.address is None:
            raise JudgeError(
                f"api_key_env: the environment variable {self.api_key_env} is not set. Set it to your key, "
                "or give base_url, the address of a server that needs none."
            )
        return value or NO_KEY

    def hide(self, text: str) -> str:
        """The text without the key, should a server have repeated it."""
        value = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        return text.replace(value, "[key]") if len(value) >= 8 else text  # shorter ones are no secrets: "none", "EMPTY"

    def matters(self) -> dict[str, Any]:
        """The settings that a reply depends on."""
        names = ("model", "max_tokens", "seed", "logprobs")
        return {name: getattr(self, name) for name in names} | {"temperature": float(self.temperature), "address": self.address}

    def to_json(self) -> dict[str, Any]:
        """All settings; the key is not one of them."""
        return asdict(self)


@dataclass(frozen=True)
class LLMUsage:
    """What asking a judge has cost so far."""

    requests: int = 0
    """Requests sent, further attempts included."""
    prompt_tokens: int = 0
    """Tokens of prompts, as the server counts them."""
    completion_tokens: int = 0
    """Tokens of replies, as the server counts them."""
    cached: int = 0
    """Replies that came from the cache, without a request."""
    failed: int = 0
    """Questions that got no reply after all attempts."""

    def __add__(self, other: LLMUsage) -> LLMUsage:
        """Both together."""
        return LLMUsage(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def _check_number(name: str, value: object, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise InputError(name, repr(value), f"a finite number, {least} or more")


def _check_address(address: object) -> None:
    expected = "an address such as 'http://localhost:8000/v1'"
    if not isinstance(address, str):
        raise InputError("base_url", type(address).__name__, expected)
    if any(mark in address for mark in "@?#"):
        raise InputError(
            "base_url",
            "an address with a user, a query or a fragment (not shown)",
            expected,
            "Secrets belong into the environment variable of api_key_env.",
        )
    try:
        parts = urlsplit(address)
        good = (
            address.isprintable()
            and " " not in address
            and parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
        )
    except ValueError:
        good = False
    if not good:
        raise InputError("base_url", repr(address), expected)
