"""What `generate` needs of an engine that samples in place of the model: token ids for token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from psr_lens._utils.arguments import CHECKS
from psr_lens.errors import InputError
from psr_lens.generation.sampling_config import SamplingConfig
from psr_lens.models import HookedModel
from psr_lens.prompts import Span
from psr_lens.replacement import Steering


@dataclass(frozen=True, eq=False)
class Job:
    """One response to be sampled."""

    ids: tuple[int, ...]
    """Token ids of the prompt."""
    stream: int
    """Number of its random stream, which is its own under every seed."""
    max_new_tokens: int
    """Maximum number of tokens in the response, including the end token."""
    steering: Steering | None
    """What steers it, a replacement or a plan."""
    alpha: float
    """Strength."""
    starts: Mapping[Span, int]
    """First steered position of the prompt for each span."""


@runtime_checkable
class Engine(Protocol):
    """Samples responses; `psr.engines` makes them."""

    @property
    def identity(self) -> str:
        """What samples depend on besides the model, the prompts and the settings; answers are cached under it."""

    def check(self, model: HookedModel, steering: Steering | None, config: SamplingConfig) -> None:
        """Refuse another model than the engine's own, or what it cannot steer with or sample by.

        Raises:
            InputError: the engine runs another model, does not serve a replacement, or cannot sample like this.
        """

    def respond(self, jobs: Sequence[Job], config: SamplingConfig, stops: frozenset[int]) -> list[tuple[int, ...]]:
        """The token ids of each response, including the end token if it was reached.

        Args:
            jobs: The responses to be sampled.
            config: How tokens are sampled.
            stops: Ids of the tokens that end a response.

        Raises:
            InputError: a prompt with its response is longer than the engine takes.
            ModelError: it failed.
        """


def _check_engine(engine: Any, argument: str) -> None:
    if engine is not None and not isinstance(engine, Engine):
        raise InputError(argument, type(engine).__name__, "an engine, or None", "For example `psr.engines.vllm(llm)`.")


CHECKS[Engine] = _check_engine
