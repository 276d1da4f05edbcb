"""Batched sampling with a KV cache, steered or not.

Every prompt has its own stream of random numbers, so a response does not depend on the other prompts in its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.numbers import counted
from psr_lens._utils.progress import progress_bar
from psr_lens._utils.sequences import padded
from psr_lens._utils.short_text import quoted
from psr_lens.errors import InputError, ModelError
from psr_lens.generation.decoding import BatchSteering, Decoding, NotFiniteError, first_not_finite
from psr_lens.generation.engine import Engine, Job
from psr_lens.generation.sampling_config import SamplingConfig as SamplingConfig
from psr_lens.generation.sampling_config import checked_sampling as checked_sampling
from psr_lens.models import HookedModel, check_ids, context_length, end_tokens, frozen, has_hooks, spans_known, tokenizer_of
from psr_lens.prompts import Context, PromptPair, Span, check_pairs
from psr_lens.prompts.chat_templates import turn_end
from psr_lens.prompts.token_text import decoded
from psr_lens.replacement import SPANS, Acting, AddedNeurons, InWeights, Steering, check_acting, in_force


@dataclass(frozen=True, repr=False)
class Response:
    """One sampled response."""

    ids: tuple[int, ...]
    """Token ids, including the end token if it was reached."""
    text: str
    """The text without special tokens."""

    def __repr__(self) -> str:
        """The text and its length, on one line."""
        return f"Response({quoted(self.text)}, {counted(len(self.ids), 'token')})"


class NotFiniteLogitsError(ModelError):
    """The logits for a token of a response are NaN or infinite: damaged weights, too small a type, or steering that is too strong."""


@checks_arguments
def generate(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    replacement: Acting | None = None,
    *,
    context: Context = "base",
    alpha: float | Sequence[float] | Float[Tensor, " pair"] | Float[np.ndarray, " pair"] = 1.0,
    sampling: SamplingConfig | None = None,
    streams: Sequence[int] | None = None,
    engine: Engine | None = None,
) -> list[Response]:
    """Sample one response to each pair's prompt in one context.

    A batch shrinks as its responses end, unless other hooks are on the model, since those may rely on the sequences of the batch.

    Args:
        model: The model; its hooks, training mode and gradients are left as they were.
        pairs: The prompts.
        replacement: What steers, a replacement or a plan, on its own span and every generated token; or an adapter, on all tokens; None
            for the model as it is.
        context: `"base"` for the prompt without the instruction, `"prompted"` for the one with it.
        alpha: Strength of the replacement: one number, or one per pair.
        sampling: How responses are sampled; None for the defaults.
        streams: Number of each pair's random stream; by default its index in `pairs`. Give these to get for some of the pairs the same
            responses that they get among all pairs.
        engine: What samples in place of the model, from `psr.engines`; it runs the same model, which here only gives the tokenizer and
            the sizes. None for the model itself.

    Returns:
        The responses, in the order of `pairs`.

    Raises:
        InputError: arguments in another order, a prompt that fills the model's context or has an id that the model does not have, or not
            one stream or strength per pair; or an engine that runs another model or cannot steer with the replacement.
        ModelError: the model has no tokenizer, or its logits are NaN or infinite.

    Example:
        >>> psr.generate(model, pairs[:1], pirate, sampling=psr.SamplingConfig(temperature=0))
        [Response('arr, to begin, carry the cold water. ...', 38 tokens)]
    """
    check_pairs(pairs, may_be_empty=True)
    for index, pair in enumerate(pairs):
        check_ids(model, pair.ids(context), f"pairs[{index}]")
    check_acting(replacement)
    config = checked_sampling(sampling)
    strengths = checked_strengths(alpha, len(pairs))
    streams = checked_streams(streams, len(pairs))
    tokenizer = tokenizer_of(model)
    if engine is not None:
        check_engine_can(engine, model, replacement, config)
        rooms = [_room(len(pair.ids(context)), row, config, context_length(model)) for row, pair in enumerate(pairs)]
        each = torch.as_tensor(strengths, dtype=torch.float64).expand(len(pairs)).tolist()
        steering = replacement if isinstance(replacement, Steering) else None
        jobs = [
            Job(pair.ids(context), streams[row], rooms[row], steering, each[row], _first_positions(pair, context))
            for row, pair in enumerate(pairs)
        ]
        return [Response(ids, decoded(tokenizer, ids)) for ids in engine.respond(jobs, config, stop_ids(model, tokenizer))]
    responses: dict[int, Response] = {}
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        frozen(model),
        progress_bar(total=len(pairs), desc="sample", unit="response") as bar,
    ):
        stops = stop_ids(model, tokenizer)
        # What is in the weights may change how the model can be run: it has to be in force when that is found out.
        alike = None if isinstance(replacement, InWeights) else Decoding(model, config, tokenizer, stops)
        for rows, adapted in _batches(model, pairs, replacement, strengths, context, config):
            batch = prompt_batch(pairs, rows, context, config, streams)
            starts = span_starts(pairs, rows, batch.tokens.shape[1])
            try:
                with adapted(), spans_known(model, starts):
                    decode = alike or Decoding(model, config, tokenizer, stops)
                    found = decode(*batch, steered_rows(replacement, strengths, rows, starts))
            except NotFiniteError as error:
                row = rows[error.row]
                prompt = pairs[row].ids(context)
                starts = span_starts(pairs, [row], len(prompt))
                with adapted(), spans_known(model, starts):
                    point = first_not_finite(model, [*prompt, *error.ids], steered_rows(replacement, strengths, [row], starts))
                raise not_finite(f"pairs[{row}]", error, point) from None
            for row, ids in zip(rows, found, strict=True):
                responses[row] = Response(ids, decoded(tokenizer, ids))
            bar.update(len(rows))
    return [responses[row] for row in range(len(pairs))]


class PromptBatch(NamedTuple):
    """Prompts that are decoded together."""

    tokens: Int[Tensor, "batch position"]
    """Token ids, padded on the left."""
    mask: Int[Tensor, "batch position"]
    """1 where a token is real."""
    draws: Float[Tensor, "batch step"]
    """A uniform number for each token that may be sampled."""


def prompt_batch(
    pairs: Sequence[PromptPair], rows: Sequence[int], context: Context, config: SamplingConfig, streams: Sequence[int]
) -> PromptBatch:
    """The prompts of some of the pairs, each with the random numbers of its stream."""
    draws = torch.stack([_draws(config, streams[row]) for row in rows])
    return PromptBatch(*padded([pairs[row].ids(context) for row in rows], "left"), draws)


def span_starts(pairs: Sequence[PromptPair], rows: Sequence[int], width: int) -> dict[Span, Int[Tensor, " row"]]:
    """The first position of each span of some of the pairs, padded on the left to `width` tokens."""
    return {span: torch.tensor([width - pairs[row].span_length(span) for row in rows]) for span in SPANS}


def steered_rows(
    steering: Acting | None, strengths: float | Tensor, rows: Sequence[int], starts: dict[Span, Int[Tensor, " row"]]
) -> BatchSteering | None:
    """What steers some of the pairs; an adapter is in force already."""
    if steering is None or isinstance(steering, InWeights):
        return None
    return BatchSteering(steering, strengths if isinstance(strengths, float) else strengths[list(rows)], starts)


def not_finite(pair: str, error: NotFiniteError, point: str | None) -> NotFiniteLogitsError:
    """The error for the logits of a response, which names the first hook point that is not finite."""
    where = (
        "although the residual stream is finite at every layer" if point is None else f"and so is `{point}`, before any later layer"
    )
    return NotFiniteLogitsError(
        f"model: the logits for token {len(error.ids)} of the response to {pair} are NaN or infinite, {where}. "
        "Check the weights, load the model with dtype='bfloat16' or 'float32' if it is in float16, or steer at a smaller alpha."
    )


def checked_strengths(alpha: Any, count: int) -> float | Float[Tensor, " pair"]:
    """One strength, or one per pair.

    Raises:
        InputError: something else, or a number that is not finite.
    """
    expected = "a finite number, or one per pair"
    try:
        strengths = torch.as_tensor(alpha, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError("alpha", repr(alpha), expected) from error
    if not bool(strengths.isfinite().all()):
        raise InputError("alpha", alpha, expected)
    if strengths.ndim == 0:
        return float(strengths)
    if strengths.shape != (count,):
        raise InputError("alpha", f"{len(strengths)} for {count} pairs", expected)
    return strengths


def checked_streams(streams: Sequence[int] | None, count: int) -> Sequence[int]:
    """The number of each pair's random stream; by default its index.

    Raises:
        InputError: not one whole number of at least 0 for each pair.
    """
    if streams is None:
        return range(count)
    if len(streams) != count:
        raise InputError("streams", f"{len(streams)} for {count} pairs", "one per pair")
    for index, stream in enumerate(streams):
        given: object = stream
        if not isinstance(given, Integral) or stream < 0:
            raise InputError(f"streams[{index}]", repr(stream), "a whole number, 0 or more")
    return streams


def _batches(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    replacement: Acting | None,
    strengths: float | Tensor,
    context: Context,
    config: SamplingConfig,
) -> Iterator[tuple[list[int], Callable[[], AbstractContextManager[Any]]]]:
    """Rows to decode together, and a block with the adapter that they have in common, which has one strength for all of a batch."""
    limit, every = context_length(model), list(range(len(pairs)))
    if not isinstance(replacement, InWeights):
        yield from ((rows, nullcontext) for rows in prompt_batches(pairs, every, context, config, limit))
        return
    each = [strengths] * len(pairs) if isinstance(strengths, float) else strengths.tolist()
    for strength in dict.fromkeys(each):
        alike = [row for row in every if each[row] == strength]
        for rows in prompt_batches(pairs, alike, context, config, limit):
            yield rows, partial(in_force, model, replacement, strength)


def prompt_batches(
    pairs: Sequence[PromptPair], among: Sequence[int], context: Context, config: SamplingConfig, limit: int
) -> Iterator[list[int]]:
    """Some of the pairs in batches of similar length that fit into the budget of tokens and a context of `limit` tokens.

    Raises:
        InputError: a prompt that fills the context.
    """
    lengths = [len(pair.ids(context)) for pair in pairs]
    batch: list[int] = []
    for row in sorted(among, key=lambda row: (lengths[row], row)):
        room = _room(lengths[row], row, config, limit)
        # Near the limit of the context, only prompts of one length share a batch: padding would leave less room for the shorter ones.
        crowded = batch and room < config.max_new_tokens and lengths[row] != lengths[batch[0]]
        if batch and (crowded or (len(batch) + 1) * (lengths[row] + room) > config.token_budget):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _room(length: int, row: int, config: SamplingConfig, limit: int) -> int:
    """Maximum number of tokens in the response to a prompt of this length."""
    if length >= limit:
        raise InputError(
            f"pairs[{row}]",
            f"a prompt of {length} tokens",
            f"fewer than the model's context of {limit}, so that a response fits",
            "Shorten the question or the instruction.",
        )
    return min(config.max_new_tokens, limit - length)


def check_engine_can(engine: Engine, model: HookedModel, replacement: Acting | None, config: SamplingConfig) -> None:
    """Refuse an engine that cannot sample in place of the model.

    Raises:
        InputError: an adapter steers, there are hooks on the model, or the engine refuses the model, the replacement or the settings.
    """
    if isinstance(replacement, InWeights):
        what = "added neurons" if isinstance(replacement, AddedNeurons) else "an adapter"
        raise InputError("engine", f"an engine, with {what} to steer with", "None", "Engines steer with replacements and plans.")
    # Whether its modules were changed, the engine sees by comparing log probabilities; vLLM itself changes some of transformers' functions.
    if has_hooks(model):
        raise InputError("engine", "an engine, while there are hooks on the model", "None", "An engine does not run them.")
    engine.check(model, replacement, config)


def _first_positions(pair: PromptPair, context: Context) -> dict[Span, int]:
    return {span: len(pair.ids(context)) - pair.span_length(span) for span in SPANS}


def _draws(config: SamplingConfig, stream: int) -> Float[Tensor, " step"]:
    """One uniform number per step, which is all that sampling a token needs."""
    return torch.from_numpy(np.random.default_rng((config.seed, stream)).random(config.max_new_tokens))


def stop_ids(model: HookedModel, tokenizer: Any) -> frozenset[int]:
    """The end tokens of the tokenizer and the model, and the token with which the chat template ends an assistant's message."""
    stops = set(end_tokens(model))
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    following = tokenizer(turn_end(tokenizer).strip(), add_special_tokens=False)["input_ids"]
    if following and following[0] in tokenizer.added_tokens_decoder:
        stops.add(following[0])
    return frozenset(stops)
