"""What an instruction does to the activations, at any set of hook points, into memory, into statistics or onto the disk.

`Δ_acc = A_{l,i|PS} − A_{l,i}` (Heyman & Vandeputte 2026, section 3): response token `i` at hook point `l`, read once after the prompt with
the instruction and once after the prompt without it. Only the token's position differs between the two runs. `Δ_loc` is what layer `l`
alone adds because of the prompt: the difference when every block's input on the span is the prompted residual stream already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, get_args, overload, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.html_table import table
from psr_lens.activations.attention_patterns import INSTRUCTION, key_counts
from psr_lens.activations.paired_passes import TOKEN_BUDGET, Difference, Reading, Rows
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, frozen
from psr_lens.models.hook_points import hook_shapes, is_pattern, select_hooks
from psr_lens.prompts import Span, TokenTable, Triplet, check_triplets, token_table

T_co = TypeVar("T_co", covariant=True)

_SHOWN: Final = 2_000
"""Tokens, evenly spaced, whose magnitudes a notebook is shown."""


@runtime_checkable
class Destination(Protocol[T_co]):
    """Where differences go: `InMemory`, `Statistics`, `OnDisk`, or one of your own."""

    def receive(self, reading: Reading) -> T_co:
        """Read what there is to read, batch by batch, and make the result of it."""


@dataclass(frozen=True)
class Captured:
    """The differences that an instruction causes, aligned token by token; `captured[name]` is one hook point's."""

    deltas: Mapping[str, Float[Tensor, "token ..."]]
    """Hook name to Δ, in the activation's own units; rows are the tokens of `tokens`.

    An attention pattern is `[token, head, key]`, the keys those of the base context (see `activations.attention_patterns`); the attention
    to the instruction is kept beside it, under the same name with `:instruction` appended."""
    tokens: TokenTable
    """What each row is."""
    span: Span
    """Which tokens were captured."""
    difference: Difference = "accumulated"
    """Which difference was taken."""

    def __getitem__(self, name: str) -> Float[Tensor, "token ..."]:
        """Δ at one hook point, `[token, …]`.

        Raises:
            InputError: that hook point was not captured.
        """
        if name not in self.deltas:
            raise InputError("hook", repr(name), f"one of those captured: {', '.join(self.deltas)}")
        return self.deltas[name]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def _repr_html_(self) -> str:
        some = torch.arange(0, len(self), max(1, len(self) // _SHOWN))
        rows = []
        for name, delta in self.deltas.items():
            norms = torch.linalg.vector_norm(delta[some].flatten(1).float(), dim=1)
            sizes = " × ".join(map(str, delta.shape[1:]))
            rows.append((name, sizes, float(norms.median()), float(norms.quantile(0.99)), delta.nbytes / 1e6))
        responses = len(self.tokens.triplet.unique())
        about = f"{self.difference} Δ of {len(self):,} tokens of {responses:,} responses, span {self.span}"
        return table(("hook point", "shape of a token", "median ‖Δ‖", "99 % within", "MB"), rows, about)

    def magnitude(self, name: str) -> Float[Tensor, " token"]:
        """‖Δ‖ of every token at one hook point."""
        norms: Tensor = torch.linalg.vector_norm(self[name].flatten(start_dim=1), dim=1)
        return norms


@dataclass(frozen=True)
class InMemory:
    """Keep every difference in main memory."""

    dtype: torch.dtype | None = None
    """Type to keep numbers in; None leaves them as the model computes them."""

    def receive(self, reading: Reading) -> Captured:
        """Read everything."""
        rows = Rows(reading.triplets, reading.span, self.dtype)
        with reading.bar() as bar:
            for indices in reading.batches(range(len(reading.triplets))):
                reading.read(indices, rows.of(indices))
                bar.update(sum(rows.counts[index] for index in indices))
        deltas = {name: rows.tensors[name] for name in reading.shapes}
        return Captured(deltas, token_table(reading.model, reading.triplets, reading.span), reading.span, reading.difference)


@overload
def capture(
    model: HookedModel,
    triplets: Sequence[Triplet],
    hooks: str | Sequence[str] = ...,
    *,
    to: None = ...,
    layers: Sequence[int] | None = ...,
    span: Span = ...,
    difference: Difference = ...,
    token_budget: int = ...,
) -> Captured: ...


@overload
def capture(
    model: HookedModel,
    triplets: Sequence[Triplet],
    hooks: str | Sequence[str] = ...,
    *,
    to: Destination[T_co],
    layers: Sequence[int] | None = ...,
    span: Span = ...,
    difference: Difference = ...,
    token_budget: int = ...,
) -> T_co: ...


def capture(
    model: HookedModel,
    triplets: Sequence[Triplet],
    hooks: str | Sequence[str] = "resid_post",
    *,
    to: Destination[object] | None = None,
    layers: Sequence[int] | None = None,
    span: Span = "R",
    difference: Difference = "accumulated",
    token_budget: int = TOKEN_BUDGET,
) -> object:
    """Capture Δ at any set of hook points.

    Args:
        model: The model; left as it was.
        triplets: Prompt pairs with responses.
        hooks: `"all"`, a kind, a hook name, a glob pattern, or several (see `select_hooks`).
        to: Where the differences go: `InMemory()` if None, `Statistics()`, `OnDisk(folder)`.
        layers: Only hook points of these layers.
        span: `"R"` or `"QR"`.
        difference: `"accumulated"` (against the unsteered run) or `"local"` (what each layer adds by itself).
        token_budget: Most tokens in a batch, padding included.

    Returns:
        What the destination makes: `Captured`, `CapturedStatistics` or a `Store`, with a row for every token of the span.

    Raises:
        InputError: no triplets, an empty response or one too long, an unknown hook point or difference, a layer out of range.
    """
    if difference not in get_args(Difference):
        raise InputError("difference", repr(difference), "'accumulated' or 'local'")
    if token_budget < 1:
        raise InputError("token_budget", token_budget, "at least 1")
    if to is not None and not callable(getattr(to, "receive", None)):
        raise InputError("to", repr(to), "InMemory(), Statistics(), OnDisk(folder), or something with a method `receive`")
    triplets = list(triplets)
    names = select_hooks(model, hooks, layers)
    check_triplets(model, triplets)
    dtype = next(iter(model.parameters())).dtype
    shapes = _row_shapes(model, triplets, names)
    reading = Reading(model, triplets, shapes, dtype, span, difference, token_budget)
    with torch.no_grad(), frozen(model):
        return (InMemory() if to is None else to).receive(reading)


def _row_shapes(model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    columns = key_counts(triplets) if any(map(is_pattern, names)) else (0, 0)
    for name, shape in hook_shapes(model, names).items():
        if is_pattern(name):
            shapes |= {name: (*shape, columns[0]), f"{name}{INSTRUCTION}": (*shape, columns[1])}
        else:
            shapes[name] = shape
    return shapes
