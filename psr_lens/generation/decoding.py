"""Token by token from a batch of prompts: on plain transformers with the same weights if that gives the same, else on the model itself."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from psr_lens.activations.finite import finite_rows
from psr_lens.errors import ArtifactError, InputError
from psr_lens.generation.sampling_config import SamplingConfig
from psr_lens.generation.token_choice import Ending, TokenChoice
from psr_lens.models import (
    Decoder,
    HookedModel,
    TransformersDecoder,
    context_length,
    device_of,
    forward,
    hooked,
    is_altered,
    plain_transformers,
)
from psr_lens.prompts import Span
from psr_lens.replacement import Steering, SteeringHooks

COMPUTED_ANYWAY: Final = 0.75
"""Finished sequences leave a batch once at most this share of it is unfinished, provided that no other hooks are on the model."""


class NotFiniteError(Exception):
    """The logits of a response are NaN or infinite."""

    def __init__(self, row: int, ids: list[int]) -> None:
        """Keep the row of the batch and the response so far."""
        super().__init__(row)
        self.row, self.ids = row, ids


@dataclass(frozen=True, eq=False)
class BatchSteering:
    """What steers a batch."""

    steering: Steering
    """A replacement or a plan."""
    alpha: float | Float[Tensor, " batch"]
    """Strength, one or one per prompt."""
    start: Mapping[Span, Int[Tensor, " batch"]]
    """First steered position of each prompt, counted with padding."""

    def hooks(self, model: HookedModel) -> SteeringHooks:
        """Hooks for a model of TransformerLens."""
        return self.steering.hooks(model, self.alpha, start=self.start)


Step = Callable[[Int[Tensor, "batch new"], Int[Tensor, "batch position"]], Float[Tensor, "batch d_vocab"]]
"""Runs new tokens, with the mask of all tokens so far; gives the logits at the last one."""


@dataclass(frozen=True, eq=False)
class Steps:
    """What makes the steps of one batch, and holds its caches."""

    step: Step
    """Runs new tokens, with the mask of all tokens so far; the logits at the last one."""
    select: Callable[[Int[Tensor, " row"]], None]
    """Continues with some of the sequences."""
    steering: SteeringHooks
    """The hooks that steer; none if nothing does."""
    in_force: Callable[[], AbstractContextManager[Any]]
    """A block in which those hooks act, to be entered around all steps or around each."""
    close: Callable[[], None]
    """Removes what is left of the hooks."""
    begun: int = 0
    """Number of columns of the prompts, alike in all of them, that were run already."""


Drawn = Generator[tuple[Int[Tensor, " row"], bool], None, list[tuple[int, ...]]]
"""Draws the tokens of a batch step by step: yields one for each sequence that is still computed, and whether these are the last tokens.
Returns the responses."""


class Decoding:
    """Decodes batches of prompts with one model."""

    def __init__(self, model: HookedModel, config: SamplingConfig, tokenizer: Any, stops: frozenset[int]) -> None:
        """Find the fastest way that gives the same responses.

        Args:
            model: The model, in evaluation mode.
            config: How tokens are sampled.
            tokenizer: Gives the responses' texts.
            stops: Ids of the tokens that end a response.
        """
        self._model, self._config, self._tokenizer, self._stops = model, config, tokenizer, sorted(stops)
        self._plain = plain_transformers(model)
        self._keep = 0.0 if self._plain is None and is_altered(model) else COMPUTED_ANYWAY

    def __call__(
        self,
        tokens: Int[Tensor, "batch position"],
        mask: Int[Tensor, "batch position"],
        draws: Float[Tensor, "batch step"],
        steered: BatchSteering | None,
    ) -> list[tuple[int, ...]]:
        """The responses to a batch of prompts, padded on the left.

        Args:
            tokens: The prompts.
            mask: 1 where a token is real, 0 on padding.
            draws: A uniform number for each token that may be sampled.
            steered: What steers the model, if anything.

        Raises:
            NotFiniteError: logits are NaN or infinite.
        """
        steps = self.steps(tokens, mask, steered)
        with closing(steps), steps.in_force():
            return self.with_steps(tokens, mask, draws, steps.step, steps.select, steps.begun)

    def with_steps(
        self,
        tokens: Int[Tensor, "batch position"],
        mask: Int[Tensor, "batch position"],
        draws: Float[Tensor, "batch step"],
        step: Step,
        select: Callable[[Tensor], None],
        begun: int = 0,
    ) -> list[tuple[int, ...]]:
        """The responses with steps of one's own; arguments and errors as for `drawn`."""
        drawn = self.drawn(tokens, mask, draws, step, select, begun)
        while True:
            try:
                next(drawn)
            except StopIteration as end:
                found: list[tuple[int, ...]] = end.value
                return found

    def steps(
        self, tokens: Int[Tensor, "batch position"], mask: Int[Tensor, "batch position"], steered: BatchSteering | None
    ) -> Steps:
        """What makes the steps of a batch of prompts; to be closed after use.

        What all prompts begin with, such as the system message of a chat template, is run once, unless it is steered.
        """
        if self._plain is not None:
            decoder = TransformersDecoder(self._plain)
            tokens, mask = self._here(tokens, mask)
            begun = decoder.begin(tokens, mask, _unsteered(tokens.shape[1] - 1, steered))
            if steered is None:
                return Steps(decoder.step, decoder.select, SteeringHooks(), nullcontext, _nothing, begun)
            # After the first run, in which nothing is steered.
            if (attached := _attached(self._plain, steered)) is not None:
                select = _both(decoder.select, attached.select)
                return Steps(decoder.step, select, attached.hooks, nullcontext, attached.remove, begun)
        hooks = SteeringHooks() if steered is None else steered.hooks(self._model)
        own = Decoder(self._model, len(tokens))
        return Steps(own.step, _both(own.select, hooks.select), hooks, lambda: hooked(self._model, hooks), hooks.close)

    def _here(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.to(device_of(self._model)) for each in given)

    def drawn(
        self,
        tokens: Int[Tensor, "batch position"],
        mask: Int[Tensor, "batch position"],
        draws: Float[Tensor, "batch step"],
        step: Step,
        select: Callable[[Tensor], None],
        begun: int = 0,
    ) -> Drawn:
        """Draw the responses to a batch step by step.

        Args:
            tokens: The prompts, padded on the left.
            mask: 1 where a token is real, 0 on padding.
            draws: A uniform number for each token that may be sampled.
            step: Takes new tokens and the mask of all so far, and gives the logits at the last token, as `Decoder.step` does.
            select: Continues with some of the sequences.
            begun: Number of columns of the prompts that were run already.

        Raises:
            NotFiniteError: logits are NaN or infinite.
        """
        tokens, mask, draws = self._here(tokens, mask, draws)
        device = tokens.device
        choose = TokenChoice(self._config, tokens, mask, self._stops)
        ended = Ending(self._tokenizer, self._stops, self._config.stop, device)
        count = min(draws.shape[1], context_length(self._model) - tokens.shape[1])
        drawn = tokens.new_zeros(len(tokens), count)
        lengths = tokens.new_full((len(tokens),), count)
        rows = torch.arange(len(tokens), device=device)
        unfinished = torch.ones_like(rows, dtype=torch.bool)
        new = tokens[:, begun:]
        for position in range(count):
            logits = step(new, mask)
            wrong = unfinished & ~finite_rows(logits)
            chosen = choose(logits, drawn[rows, :position], draws[:, position])
            drawn[rows, position] = chosen
            ending = unfinished & ended(drawn[rows, : position + 1], unfinished)
            lengths[rows[ending]] = position + 1
            unfinished &= ~ending
            left, broken = torch.stack([unfinished.sum(), wrong.sum()]).tolist()
            if broken:
                row = int(rows[wrong.nonzero()[0, 0]])
                raise NotFiniteError(row, drawn[row, :position].tolist())
            is_last = not left or position + 1 == count
            yield chosen, is_last
            if is_last:
                break
            new = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if left <= self._keep * len(rows):
                kept = unfinished.nonzero().flatten()
                select(kept)
                choose.select(kept)
                rows, unfinished, new, mask, draws = (each[kept] for each in (rows, unfinished, new, mask, draws))
        return [tuple(row[:length]) for row, length in zip(drawn.tolist(), lengths.tolist(), strict=True)]


def _nothing() -> None:
    """Nothing is left to remove."""


def _unsteered(columns: int, steered: BatchSteering | None) -> int:
    """How many of the first columns nothing steers, in any row."""
    return columns if steered is None else max(0, min(columns, *(int(start.min()) for start in steered.start.values())))


def _attached(plain: nn.Module, steered: BatchSteering) -> Any:
    """The replacement attached to plain transformers; None if it cannot be: its own hooks act, or say what is wrong."""
    try:
        return steered.steering.attach(plain, steered.alpha, start=steered.start)
    except (InputError, ArtifactError):
        return None


def _both(one: Callable[[Tensor], None], other: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    def select(rows: Tensor) -> None:
        one(rows)
        other(rows)

    return select


def first_not_finite(model: HookedModel, ids: list[int], steered: BatchSteering | None) -> str | None:
    """The first hook point at which the residual stream of a sequence is NaN or infinite; None if it is finite at each layer."""
    found: list[str] = []

    def note(name: str) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            if not found and not bool(activation.isfinite().all()):
                found.append(name)

        return hook

    names = ["hook_embed", *(f"blocks.{layer}.hook_resid_post" for layer in range(int(model.cfg.n_layers)))]
    hooks = SteeringHooks() if steered is None else steered.hooks(model)
    tokens = torch.tensor([ids], device=device_of(model))
    with torch.no_grad(), hooked(model, hooks), hooked(model, [(name, note(name)) for name in names]):
        forward(model, tokens, torch.ones_like(tokens))
    return found[0] if found else None
