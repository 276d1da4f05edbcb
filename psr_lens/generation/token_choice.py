"""Choosing the next token of each response from its logits, by transformers' own processors, and knowing when a response ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from psr_lens.generation.sampling_config import SamplingConfig


class TokenChoice:
    """Chooses one token per response and step; a response does not depend on the others in its batch, nor on padding."""

    def __init__(
        self,
        config: SamplingConfig,
        tokens: Int[Tensor, "batch position"],
        mask: Int[Tensor, "batch position"],
        stops: Sequence[int],
    ) -> None:
        """Prepare for a batch of prompts, padded on the left.

        Args:
            config: How tokens are sampled.
            tokens: The prompts.
            mask: 1 where a token is real, 0 on padding.
            stops: Ids of the tokens that end a response.
        """
        self._greedy = config.temperature == 0
        self._processors = _processors(config, tokens.shape[1], stops, tokens.device)
        # A processor sees padding as tokens of the prompt: the prompt's own last token in its place changes nothing.
        self._before = torch.where(mask.bool(), tokens, tokens[:, -1:])

    def __call__(
        self, logits: Float[Tensor, "batch d_vocab"], following: Int[Tensor, "batch new"], draw: Float[Tensor, " batch"]
    ) -> Int[Tensor, " batch"]:
        """The next token of each response.

        Args:
            logits: The model's logits at the last token.
            following: The responses so far.
            draw: A uniform number for each response; not used at temperature 0.
        """
        if not self._greedy:
            logits = logits.double()  # rounding in the cumulative sum would move tokens by one
        if self._processors:
            logits = self._processors(torch.cat([self._before, following], dim=1), logits)
        if self._greedy:
            return logits.argmax(-1)
        cumulative = logits.softmax(-1).cumsum(-1)
        # Rounding can leave the last cumulative probability just below the draw.
        return torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None]).squeeze(1).clamp(max=logits.shape[-1] - 1)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Continue with these sequences of the batch."""
        self._before = self._before[rows]


def _processors(config: SamplingConfig, width: int, stops: Sequence[int], device: torch.device) -> Any:
    """Transformers' processors in the order of its `generate`; none for settings that change nothing."""
    found: list[Any] = []
    if config.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(penalty=float(config.repetition_penalty)))
    if config.min_new_tokens > 0 and stops:
        found.append(MinNewTokensLengthLogitsProcessor(width, config.min_new_tokens, list(stops), device=device))
    if config.temperature not in (0, 1):
        found.append(TemperatureLogitsWarper(float(config.temperature)))
    if config.temperature == 0:
        return LogitsProcessorList(found)
    if config.top_k:
        found.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        found.append(TopPLogitsWarper(float(config.top_p)))
    if config.min_p > 0:
        found.append(MinPLogitsWarper(float(config.min_p)))
    return LogitsProcessorList(found)


class Ending:
    """Which responses have ended: by an end token, or by a text in their own text."""

    def __init__(self, tokenizer: Any, stops: Sequence[int], texts: Sequence[str], device: torch.device) -> None:
        """Keep the end tokens and the texts."""
        self._stops = torch.tensor(stops, dtype=torch.long, device=device)
        self._texts = tuple(texts)
        self._decode: Callable[[list[int]], str] = tokenizer.decode

    def __call__(self, drawn: Int[Tensor, "batch step"], unfinished: Bool[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
        """Which of the unfinished responses have ended with their last token."""
        ended = torch.isin(drawn[:, -1], self._stops)
        if self._texts:
            going = (unfinished & ~ended).nonzero().flatten().tolist()
            for row, ids in zip(going, drawn[going].tolist(), strict=True):
                text = self._decode(ids)
                ended[row] = any(each in text for each in self._texts)
        return ended
