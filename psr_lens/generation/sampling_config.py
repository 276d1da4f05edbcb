"""How responses are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psr_lens._utils.arguments import CHECKS
from psr_lens._utils.numbers import is_real, is_whole, use_plain_numbers
from psr_lens._utils.yaml_config import KnownSettings
from psr_lens.errors import InputError


@dataclass(frozen=True)
class SamplingConfig(KnownSettings):
    r"""How responses are sampled; each setting means what it means in transformers' `generate`, whose own code carries it out.

    Example:
        >>> settings = psr.SamplingConfig(top_p=0.9, stop=["Regards"], max_new_tokens=40)
        >>> settings.stop
        ('Regards',)
    """

    temperature: float = 1.0
    """Softmax temperature; 0 always takes the likeliest token."""
    max_new_tokens: int = 128
    """Maximum number of tokens in a response, including the end token; the model's context may allow fewer."""
    seed: int = 0
    """Seed of the random streams; each prompt has its own."""
    token_budget: int = 16_384
    """Maximum number of tokens in a batch, prompts and responses together."""
    top_p: float = 1.0
    """Sample from the likeliest tokens whose probabilities add up to this, above 0 and at most 1; 1 for no limit."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0 for no limit."""
    min_p: float = 0.0
    """Sample from the tokens that are at least this fraction as probable as the likeliest, 0–1; 0 for no limit."""
    repetition_penalty: float = 1.0
    """Logits of tokens in the prompt or the response are divided by this if positive, else multiplied by it; 1 for no penalty."""
    min_new_tokens: int = 0
    """Number of tokens before which no end token is sampled; a text in `stop` may end a response earlier."""
    stop: Sequence[str] = ()
    """Texts that end a response; as in transformers, the text and its tokens stay in the response. One string counts as one text."""

    def __post_init__(self) -> None:
        """Refuse invalid settings."""
        use_plain_numbers(self)
        if not is_real(self.temperature) or not 0 <= self.temperature < float("inf"):
            raise InputError("temperature", repr(self.temperature), "a finite number, 0 or more")
        for name, least in (("max_new_tokens", 1), ("token_budget", 1), ("seed", 0), ("top_k", 0), ("min_new_tokens", 0)):
            value = getattr(self, name)
            if not is_whole(value) or value < least:
                raise InputError(name, repr(value), f"a whole number, {least} or more")
        if not is_real(self.top_p) or not 0 < self.top_p <= 1:
            raise InputError("top_p", repr(self.top_p), "a number above 0 and at most 1", "1 leaves it out.")
        if not is_real(self.min_p) or not 0 <= self.min_p <= 1:
            raise InputError("min_p", repr(self.min_p), "a number from 0 to 1", "0 leaves it out.")
        if not is_real(self.repetition_penalty) or not 0 < self.repetition_penalty < float("inf"):
            raise InputError("repetition_penalty", repr(self.repetition_penalty), "a finite number above 0", "1 leaves it out.")
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError("min_new_tokens", self.min_new_tokens, f"at most `max_new_tokens`, which is {self.max_new_tokens}")
        object.__setattr__(self, "stop", _texts(self.stop))


def _texts(stop: Any) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list | tuple) else None
    if texts is None or not all(isinstance(each, str) and each for each in texts):
        raise InputError("stop", repr(stop), "a list of texts, none of them empty")
    return texts


def checked_sampling(sampling: SamplingConfig | None, argument: str = "sampling") -> SamplingConfig:
    """The settings of sampling, or the defaults if None; an error calls them `argument`.

    Raises:
        InputError: `sampling` is neither a `SamplingConfig` nor None.
    """
    config: object = SamplingConfig() if sampling is None else sampling
    if not isinstance(config, SamplingConfig):
        raise InputError(argument, type(config).__name__, "a SamplingConfig", "For example `psr.SamplingConfig(temperature=0)`.")
    return config


CHECKS[SamplingConfig] = checked_sampling
