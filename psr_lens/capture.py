"""What an instruction does to the activations: teacher-forced passes over both contexts of the same responses.

`Δ_acc = A_{l,i|PS} − A_{l,i}` (Heyman & Vandeputte 2026, section 3): response token `i` at hook point `l`, read once after the prompt with
the instruction and once after the prompt without it. Only the token's position differs between the two runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from psr_lens.errors import InputError
from psr_lens.hook_points import layer_of, select_hooks
from psr_lens.models import HookedModel, device_of, forward, frozen
from psr_lens.prompts import Context, Span, TokenTable, Triplet, check_triplets, context_batch, length_batches, token_table
from psr_lens.sampling import Steering

TOKEN_BUDGET: Final = 8_192
"""Tokens of a batch, padding included, unless the caller says otherwise."""


@dataclass(frozen=True)
class Captured:
    """The differences that an instruction causes, aligned token by token; `captured[name]` is one hook point's."""

    deltas: Mapping[str, Float[Tensor, "token ..."]]
    """Hook name to Δ_acc, in the activation's own units; rows are the tokens of `tokens`."""
    tokens: TokenTable
    """What each row is."""
    span: Span
    """Which tokens were captured."""

    def __getitem__(self, name: str) -> Float[Tensor, "token ..."]:
        """Δ_acc at one hook point, `[token, …]`.

        Raises:
            InputError: that hook point was not captured.
        """
        if name not in self.deltas:
            raise InputError("hook", repr(name), f"one of those captured: {', '.join(self.deltas)}")
        return self.deltas[name]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def strength(self, name: str) -> Float[Tensor, "token"]:
        """‖Δ_acc‖ of every token at one hook point."""
        norms: Tensor = torch.linalg.vector_norm(self[name].flatten(start_dim=1), dim=1)
        return norms


def capture(
    model: HookedModel,
    triplets: Sequence[Triplet],
    hooks: str | Sequence[str] = "resid_post",
    *,
    layers: Sequence[int] | None = None,
    span: Span = "R",
    token_budget: int = TOKEN_BUDGET,
    progress: bool = False,
) -> Captured:
    """Capture Δ_acc at any set of hook points, in memory.

    Args:
        model: The model; left as it was.
        triplets: Prompt pairs with responses.
        hooks: `"all"`, a kind, a hook name, a glob pattern, or several (see `select_hooks`).
        layers: Only hook points of these layers.
        span: `"R"` or `"QR"`.
        token_budget: Most tokens in a batch, padding included.
        progress: Show a progress bar.

    Returns:
        The differences on the CPU, with a row for every token of the span.

    Raises:
        InputError: no triplets, an empty response or one too long, an unknown hook point, a layer out of range.
    """
    names = select_hooks(model, hooks, layers)
    deltas: dict[str, Tensor] = {}
    for context in ("base", "steered"):
        rows = collect(model, triplets, names, context, span, token_budget=token_budget, progress=progress)
        deltas = rows if context == "base" else {name: rows[name] - deltas[name] for name in names}
    return Captured(deltas, token_table(model, triplets, span), span)


def collect(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    context: Context,
    span: Span,
    *,
    steering: Steering | None = None,
    alpha: float = 1.0,
    arriving: bool = False,
    token_budget: int = TOKEN_BUDGET,
    progress: bool = False,
) -> dict[str, Float[Tensor, "token ..."]]:
    """Activations at hook points on the span, from one teacher-forced pass over all triplets in one context.

    Args:
        model: The model.
        triplets: Prompt pairs with responses.
        names: Hook names.
        context: Which prompt the responses are read after.
        span: Which tokens to keep.
        steering: A replacement to steer with over its own span, if any.
        alpha: Its strength.
        arriving: Where the replacement acts, read what arrives there instead of what the model goes on with.
        token_budget: Most tokens in a batch, padding included.
        progress: Show a progress bar.

    Returns:
        Hook name to `[token, …]` on the CPU, rows in the order of `token_table`.
    """
    check_triplets(model, triplets)
    pieces: dict[str, dict[int, Tensor]] = {name: {} for name in names}
    layers = [layer_of(name) for name in names]
    inside = [layer for layer in layers if layer is not None]
    stop = max(inside) + 1 if inside and len(inside) == len(names) else None
    bar = tqdm(total=len(triplets), desc=f"read {context}", unit="triplet", disable=not progress)
    with torch.no_grad(), frozen(model), bar:
        for indices in length_batches(triplets, token_budget):
            chosen = [triplets[index] for index in indices]
            batch = context_batch(chosen, context, span, device_of(model))
            counts = batch.span.sum(1).tolist()
            steered: AbstractContextManager[Any] = nullcontext()
            if steering is not None:
                steered = steering.steer(model, alpha, start=_starts(chosen, context, steering.span))
            held: dict[str, Tensor] = {}
            reading = model.hooks(fwd_hooks=[(name, _keep(held, name, batch.span)) for name in names])
            # Hooks of one point run in the order in which they were added.
            first, second = (reading, steered) if arriving else (steered, reading)
            with first, second:
                forward(model, batch.tokens, batch.mask, stop)
            for name, rows in held.items():
                for index, piece in zip(indices, rows.cpu().split(counts), strict=True):
                    pieces[name][index] = piece
            bar.update(len(indices))
    return {name: torch.cat([found[index] for index in range(len(triplets))]) for name, found in pieces.items()}


def _starts(triplets: Sequence[Triplet], context: Context, span: Span) -> Tensor:
    return torch.tensor([len(triplet.pair.ids(context)) - triplet.pair.span_length(span) for triplet in triplets])


def _keep(held: dict[str, Tensor], name: str, span: Tensor) -> Any:
    def hook(activation: Tensor, hook: Any) -> None:
        held[name] = activation.detach().expand(len(span), *activation.shape[1:])[span]

    return hook
