"""Batched generation with a KV cache, steered or not, and the triplets that come of it.

Every prompt draws from its own stream of random numbers, so a response does not depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.progress import progress_bar
from psr_lens.errors import InputError
from psr_lens.models import (
    Decoder,
    HookedModel,
    context_length,
    device_of,
    end_tokens,
    frozen,
    hook_tables,
    hooked,
    tokenizer_of,
)
from psr_lens.prompts import Context, PromptPair
from psr_lens.prompts.chat_templates import turn_end
from psr_lens.replacement import SPANS, Steering, SteeringHooks

COMPUTED_ANYWAY: Final = 0.75
"""Sequences that have ended leave a batch once no more than this share of it is still going on, if nobody else has hooks on the model."""


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn."""

    temperature: float = 1.0
    """Softmax temperature; 0 takes the likeliest token."""
    max_new_tokens: int = 128
    """Most tokens of a response, the end token included; the model's context may allow fewer."""
    seed: int = 0
    """Seed of the random streams, one a prompt."""
    token_budget: int = 16_384
    """Most tokens of a batch, prompt and response together."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant."""
        if not isinstance(self.temperature, int | float) or not 0 <= self.temperature < float("inf"):
            raise InputError("temperature", self.temperature, "a finite number, 0 or more")
        for name, least in (("max_new_tokens", 1), ("token_budget", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(name, value, f"a whole number, {least} or more")


@dataclass(frozen=True)
class Response:
    """One sampled response."""

    ids: tuple[int, ...]
    """Token ids, the end token included if it was reached."""
    text: str
    """The text without special tokens."""


def generate(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    replacement: Steering | None = None,
    *,
    context: Context = "base",
    alpha: float | Sequence[float] | Float[Tensor, " pair"] | Float[np.ndarray, " pair"] = 1.0,
    sampling: SamplingConfig | None = None,
    streams: Sequence[int] | None = None,
) -> list[Response]:
    """Sample one response to each pair's prompt in one context.

    A batch gets smaller as its responses end, unless there are other hooks on the model: those may count on their sequences.

    Args:
        model: The model; its hooks, training mode and gradients are left as they were.
        pairs: The prompts.
        replacement: What steers, one replacement or a plan, over its own span and every generated token; None for the model as it is.
        context: `"base"` for the prompt without the instruction, `"prompted"` for the one with it.
        alpha: Strength of the replacement, one number or one a pair.
        sampling: How responses are drawn; the default if None.
        streams: Number of each pair's random stream; its place in `pairs` if None. With it a part of the pairs gets the answers that it
            gets among all of them.

    Returns:
        The responses, in the order of `pairs`.

    Raises:
        InputError: a prompt fills the model's context, or there are not as many streams or strengths as pairs.
    """
    config = sampling or SamplingConfig()
    streams = range(len(pairs)) if streams is None else streams
    strengths = None if np.ndim(alpha) == 0 else torch.as_tensor(alpha, dtype=torch.float64)
    for name, values in (("streams", streams), ("alpha", strengths)):
        if values is not None and len(values) != len(pairs):
            raise InputError(name, f"{len(values)} for {len(pairs)} pairs", "one a pair")
    tokenizer = tokenizer_of(model)
    stops = _stop_ids(model, tokenizer)
    responses: dict[int, Response] = {}
    keep = 0.0 if any(hook_tables(model)) else COMPUTED_ANYWAY
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        frozen(model),
        progress_bar(total=len(pairs), desc="sample", unit="response") as bar,
    ):
        for rows in _prompt_batches(pairs, context, config, context_length(model)):
            chosen = [pairs[row] for row in rows]
            tokens, mask = _left_padded([pair.ids(context) for pair in chosen])
            hooks = SteeringHooks()
            if replacement is not None:
                starts = {span: torch.tensor([tokens.shape[1] - pair.span_length(span) for pair in chosen]) for span in SPANS}
                hooks = replacement.hooks(model, cast(float, alpha) if strengths is None else strengths[rows], start=starts)
            draws = torch.stack([_draws(config, streams[row]) for row in rows])
            with hooked(model, hooks):
                found = _decode(model, tokens, mask, draws, stops, config.temperature, hooks, keep)
            for row, ids in zip(rows, found, strict=True):
                responses[row] = Response(ids, tokenizer.decode(ids, skip_special_tokens=True))
            bar.update(len(rows))
    return [responses[row] for row in range(len(pairs))]


def _prompt_batches(pairs: Sequence[PromptPair], context: Context, config: SamplingConfig, limit: int) -> Iterator[list[int]]:
    lengths = [len(pair.ids(context)) for pair in pairs]
    batch: list[int] = []
    for row in sorted(range(len(pairs)), key=lambda row: (lengths[row], row)):
        if lengths[row] >= limit:
            raise InputError(
                f"pairs[{row}]",
                f"a prompt of {lengths[row]} tokens",
                f"fewer than the model's context of {limit}, so that a response fits",
                "Shorten the question or the instruction.",
            )
        room = min(config.max_new_tokens, limit - lengths[row])
        # Near the context's limit only prompts of one length share a batch: padding would take room from the shorter ones.
        crowded = batch and room < config.max_new_tokens and lengths[row] != lengths[batch[0]]
        if batch and (crowded or (len(batch) + 1) * (lengths[row] + room) > config.token_budget):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "batch position"], Int[Tensor, "batch position"]]:
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    return tokens, mask


def _draws(config: SamplingConfig, stream: int) -> Float[Tensor, " step"]:
    """One uniform number a step: all that sampling from a distribution needs."""
    return torch.from_numpy(np.random.default_rng((config.seed, stream)).random(config.max_new_tokens))


def _decode(
    model: HookedModel,
    tokens: Int[Tensor, "batch position"],
    mask: Int[Tensor, "batch position"],
    draws: Float[Tensor, "batch step"],
    stops: frozenset[int],
    temperature: float,
    hooks: SteeringHooks,
    keep: float,
) -> list[tuple[int, ...]]:
    device = device_of(model)
    tokens, mask, draws = tokens.to(device), mask.to(device), draws.to(device)
    decoder = Decoder(model, len(tokens))
    stop = torch.tensor(sorted(stops), device=device)
    steps = min(draws.shape[1], context_length(model) - tokens.shape[1])
    drawn = tokens.new_full((len(tokens), steps), -1)
    rows = torch.arange(len(tokens), device=device)
    going_on = torch.ones_like(rows, dtype=torch.bool)
    new = tokens
    for step in range(steps):
        chosen = _choose(decoder.step(new, mask), draws[:, step], temperature)
        drawn[rows, step] = torch.where(going_on, chosen, -1)
        going_on &= ~torch.isin(chosen, stop)
        left = int(going_on.sum())
        if not left:
            break
        new = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if left <= keep * len(rows):
            kept = going_on.nonzero().flatten()
            decoder.select(kept)
            hooks.select(kept)
            rows, going_on, new, mask, draws = (each[kept] for each in (rows, going_on, new, mask, draws))
    return [tuple(token for token in row if token >= 0) for row in drawn.tolist()]


def _choose(logits: Float[Tensor, "batch d_vocab"], draw: Float[Tensor, " batch"], temperature: float) -> Int[Tensor, " batch"]:
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.double() / temperature).softmax(-1).cumsum(-1)
    # Rounding can leave the last sum just short of the draw.
    return torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None]).squeeze(1).clamp(max=logits.shape[-1] - 1)


def _stop_ids(model: HookedModel, tokenizer: Any) -> frozenset[int]:
    """The end tokens of tokenizer and model, and the token with which the chat template ends an assistant's message."""
    stops = set(end_tokens(model))
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    following = tokenizer(turn_end(tokenizer).strip(), add_special_tokens=False)["input_ids"]
    if following and following[0] in tokenizer.added_tokens_decoder:
        stops.add(following[0])
    return frozenset(stops)
