"""Batched generation with a KV cache, steered or not, and the triplets that come of it.

Every prompt draws from its own stream of random numbers, so a response does not depend on what else is in its batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast, overload, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from psr_lens.errors import InputError
from psr_lens.judges.protocol import Judge, Judgement
from psr_lens.models import Decoder, HookedModel, context_length, device_of, end_tokens, frozen, hook_tables, hooked, tokenizer_of
from psr_lens.notebook import table
from psr_lens.pairs import shown
from psr_lens.prompt_view import PromptView
from psr_lens.prompts import Context, PromptPair, PromptPairs, Span, Triplet
from psr_lens.steering import SPANS, Start, SteeringHooks
from psr_lens.templates import turn_end

COMPUTED_ANYWAY: Final = 0.75
"""Sequences that have ended leave a batch once no more than this share of it is still going on, if nobody else has hooks on the model."""

MIN_SCORE: Final = 0.5
"""Responses below this in coherence or in the trait are dropped (Heyman & Vandeputte 2026, training data)."""


_SHOWN: Final = 8
"""Responses that a notebook is shown."""


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


@runtime_checkable
class Steering(Protocol):
    """Anything that steers a model; `Replacement` and `SteeringPlan` are."""

    def hooks(
        self, model: HookedModel, alpha: float | Float[Tensor, " batch"] = ..., *, start: Start | None = ...
    ) -> SteeringHooks:
        """Hooks that steer from position `start` of each sequence on; callers here give one position a span and sequence."""


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
    context: Context = "base",
    config: SamplingConfig | None = None,
    *,
    steering: Steering | None = None,
    alpha: float | Sequence[float] | Float[Tensor, " pair"] | Float[np.ndarray, " pair"] = 1.0,
    streams: Sequence[int] | None = None,
    progress: bool = False,
) -> list[Response]:
    """Sample one response to each pair's prompt in one context.

    A batch gets smaller as its responses end, unless there are other hooks on the model: those may count on their sequences.

    Args:
        model: The model; its hooks, training mode and gradients are left as they were.
        pairs: The prompts.
        context: `"base"` for the prompt without the instruction, `"steered"` for the one with it.
        config: How responses are drawn; the default if None.
        steering: A replacement or a plan to steer with, over its own span and every generated token.
        alpha: Its strength, one number or one a pair.
        streams: Number of each pair's random stream; its place in `pairs` if None. With it a part of the pairs gets the answers that it
            gets among all of them.
        progress: Show a progress bar.

    Returns:
        The responses, in the order of `pairs`.

    Raises:
        InputError: a prompt fills the model's context, or there are not as many streams or strengths as pairs.
    """
    config = config or SamplingConfig()
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
        tqdm(total=len(pairs), desc="sample", unit="response", disable=not progress) as bar,
    ):
        for rows in _prompt_batches(pairs, context, config, context_length(model)):
            chosen = [pairs[row] for row in rows]
            tokens, mask = _left_padded([pair.ids(context) for pair in chosen])
            hooks = SteeringHooks()
            if steering is not None:
                starts = {span: torch.tensor([tokens.shape[1] - pair.span_length(span) for pair in chosen]) for span in SPANS}
                hooks = steering.hooks(model, cast(float, alpha) if strengths is None else strengths[rows], start=starts)
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


@dataclass(frozen=True)
class Dropped:
    """A response that the judge filter left out."""

    question: str
    """The question."""
    response: str
    """The response."""
    reason: str
    """`incoherent`, `trait missing`, `empty` or `unjudged`."""


@dataclass(frozen=True)
class Triplets(Sequence[Triplet]):
    """Triplets that passed the judge filter, and those that did not; behaves as the sequence of the former."""

    kept: tuple[Triplet, ...]
    """The triplets to learn from."""
    dropped: tuple[Dropped, ...] = ()
    """What was left out, and why."""
    tokenizer: Any = field(default=None, compare=False)
    """What tells the tokens' texts; None where the pairs had none."""

    def __len__(self) -> int:
        """Number of triplets kept."""
        return len(self.kept)

    @overload
    def __getitem__(self, index: int) -> Triplet: ...
    @overload
    def __getitem__(self, index: slice) -> Triplets: ...
    def __getitem__(self, index: int | slice) -> Triplet | Triplets:
        """One triplet, or a part of them."""
        return Triplets(self.kept[index], self.dropped, self.tokenizer) if isinstance(index, slice) else self.kept[index]

    def show(self, index: int = 0, span: Span = "R") -> PromptView:
        """One triplet's prompts with its response as coloured text, and the tokens that `span` takes in; see `PromptPairs.show`."""
        return shown(self.tokenizer, [each.pair for each in self.kept], index, span, self[index].response_ids)

    def summary(self) -> str:
        """How many were kept, and how many were dropped for which reason."""
        counts = Counter(each.reason for each in self.dropped)
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        return f"{len(self.kept)} triplets kept, {len(self.dropped)} dropped" + (f" ({reasons})" if reasons else "")

    def _repr_html_(self) -> str:
        rows = [(each.pair.question, each.response, each.trait, each.coherence) for each in self.kept[:_SHOWN]]
        return table(("question", "response", "trait", "coherence"), rows, f"{self.summary()}; the first of them:")

    def __repr__(self) -> str:
        """The summary."""
        return f"Triplets({self.summary()})"


def sample_responses(
    model: HookedModel,
    pairs: Sequence[PromptPair],
    judge: Judge | None = None,
    config: SamplingConfig | None = None,
    *,
    keep_negatives: bool = False,
    progress: bool = True,
) -> Triplets:
    """Sample a response to every steered prompt, and keep those that the judge finds coherent and with the trait.

    Args:
        model: The model.
        pairs: Prompt pairs from `prompt_pairs`.
        judge: Scores the responses; None keeps all of them, at full score.
        config: How responses are drawn.
        keep_negatives: Keep coherent responses without the trait too, as negative examples: `FitConfig(learned_offset=True)`.
        progress: Show a progress bar.

    Returns:
        The triplets, with what was dropped and why (`.summary()`).

    Raises:
        InputError: there are no pairs.
    """
    if not pairs:
        raise InputError("pairs", "an empty list", "at least one prompt pair", "`prompt_pairs` makes them.")
    responses = generate(model, pairs, "steered", config, progress=progress)
    return judged_triplets(pairs, responses, judge, keep_negatives=keep_negatives)


def judged_triplets(
    pairs: Sequence[PromptPair], responses: Sequence[Response], judge: Judge | None, *, keep_negatives: bool = False
) -> Triplets:
    """Join pairs and responses into triplets and filter them by their scores, the trait's not if negatives are to be kept."""
    full = np.full(len(pairs), 100.0)
    scores = Judgement(full, full, ("",) * len(pairs))
    if judge is not None:
        scores = judge([response.text for response in responses], [pair.asked for pair in pairs])
    kept, dropped = [], []
    for pair, response, trait, coherence in zip(pairs, responses, scores.trait / 100, scores.coherence / 100, strict=True):
        reason = _why_dropped(response, 1.0 if keep_negatives and not np.isnan(trait) else float(trait), float(coherence))
        if reason:
            dropped.append(Dropped(pair.asked, response.text, reason))
        else:
            kept.append(Triplet(pair, response.ids, response.text, float(trait), float(coherence)))
    return Triplets(tuple(kept), tuple(dropped), pairs.tokenizer if isinstance(pairs, PromptPairs) else None)


def _why_dropped(response: Response, trait: float, coherence: float) -> str:
    if not response.text.strip():
        return "empty"
    if np.isnan(trait) or np.isnan(coherence):
        return "unjudged"
    if coherence < MIN_SCORE:
        return "incoherent"
    return "trait missing" if trait < MIN_SCORE else ""
