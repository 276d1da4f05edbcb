"""The model type `psr-completions` of lm-evaluation-harness: its `local-completions`, for likelihoods of steered models on vLLM's server.

lm_eval sends a context and what follows it as one prompt, of which the server would steer the last token alone. Here every request also
says where its context ends. Importing this module registers the model type.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from psr_lens._utils.optional import package
from psr_lens._utils.safe_files import brief
from psr_lens.errors import InputError

if TYPE_CHECKING:
    from lm_eval.models.openai_completions import LocalCompletionsAPI
else:
    LocalCompletionsAPI = object  # lm_eval's own class comes in at `completions_type`

NAME: Final = "psr-completions"
"""The name of the model type, as in `lm_eval --model psr-completions`."""


class _Text(list[int]):
    """The tokens of a text, with the length of its context, which lm_eval does not hand on to where a request is made."""

    def __init__(self, tokens: Sequence[int], context: int) -> None:
        super().__init__(tokens)
        self.context = context


class SteeredCompletions(LocalCompletionsAPI):  # type: ignore[misc]
    """What the model type `psr-completions` adds to `local-completions`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        """Set up requests; `model` is a name such as `base+pirate@0.8`.

        Args:
            args: Arguments of `local-completions`.
            settings: Further ones.

        Raises:
            InputError: several texts would share a request, or texts would not be sent as tokens.
        """
        super().__init__(*args, **settings)
        if self._batch_size != 1:
            remedy = "A request says once where it is steered from; `num_concurrent` has many of them answered together."
            raise InputError("batch_size", brief(self._batch_size), "1", remedy)
        if not self.tokenized_requests:
            remedy = "Give a `tokenizer`, and leave `tokenizer_backend` out."
            raise InputError("tokenized_requests", False, "True, since the context's length is counted in tokens", remedy)

    def batch_loglikelihood_requests(self, chunks: Any) -> tuple[list[list[int]], list[int], list[Any]]:
        """The texts of requests, each of which knows its context's length, those lengths, and the keys of the cache."""
        texts, lengths, keys = super().batch_loglikelihood_requests(chunks)
        return [_Text(text, length) for text, length in zip(texts, lengths, strict=True)], lengths, keys

    def _create_payload(self, messages: Any, generate: bool = False, **settings: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._create_payload(messages, generate=generate, **settings)
        if generate:
            return payload
        (text,) = messages
        return payload | {"vllm_xargs": {"psr_start_R": text.context - 1}}


@cache
def completions_type() -> type[SteeredCompletions]:
    """The class of the model type, a `SteeredCompletions` and a `LocalCompletionsAPI`, registered under `NAME` with lm_eval.

    Raises:
        MissingPackageError: lm_eval is not installed.
    """
    parent = package("lm_eval.models.openai_completions", "lm-eval").LocalCompletionsAPI
    made = type("SteeredLocalCompletions", (SteeredCompletions, parent), {"__module__": __name__})
    package("lm_eval.api.registry", "lm-eval").register_model(NAME)(made)
    return made


if find_spec("lm_eval") is not None:
    completions_type()
