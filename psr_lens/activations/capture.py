"""Capturing what an instruction changes at any set of hook points: in memory, as statistics or on disk.

`Δ_acc = A_{l,i|PS} − A_{l,i}` (Heyman & Vandeputte 2026, section 3): the activation of response token `i` at hook point
`l`, after the prompt with the instruction minus after the prompt without it. Only the token's position differs between the two runs.
`Δ_loc` is what layer `l` alone adds because of the prompt: the difference if every block's input on the span is already the prompted
residual stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar, overload, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import CHECKS, check_fields, checks_arguments, described
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens.activations.attention_patterns import INSTRUCTION, key_counts
from psr_lens.activations.hook_keys import HookKey, captured_name
from psr_lens.activations.paired_passes import TOKEN_BUDGET, Difference, PairedReading, Rows
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, dtype_of, frozen
from psr_lens.models.hook_points import Layers, hook_shapes, is_pattern, select_hooks
from psr_lens.prompts import Span, TokenTable, Triplet, check_triplets, token_table

T_co = TypeVar("T_co", covariant=True)

_SHOWN: Final = 2_000
"""Tokens, evenly spaced, that the magnitudes shown in a notebook are computed from."""


@runtime_checkable
class Destination(Protocol[T_co]):
    """Where differences go: `InMemory`, `Statistics`, `OnDisk`, or a class of your own."""

    def receive(self, reading: PairedReading) -> T_co:
        """Read the differences batch by batch and return the result of `capture`."""


@dataclass(frozen=True, eq=False, repr=False)
class Captured:
    """The differences Δ that an instruction causes, aligned token by token; made by `capture`.

    Example:
        >>> captured
        Captured(6 hook points, ... tokens of ... responses, accumulated, span R)
        >>> captured["resid_post", 3].shape[1:], captured.magnitude(("resid_post", -1)).ndim
        (torch.Size([128]), 1)
    """

    deltas: Mapping[str, Float[Tensor, "token ..."]]
    """Hook name to Δ, `[token, …]`, in the units of the activation; rows are the tokens of `tokens`.

    An attention pattern is `[token, head, key]`, with the keys of the base context (see `activations.attention_patterns`); the attention
    to the instruction is kept under the same name with `:instruction` appended."""
    tokens: TokenTable
    """What each row is."""
    span: Span
    """Which tokens were captured."""
    difference: Difference = "accumulated"
    """Which difference was taken."""
    n_layers: int | None = None
    """Depth of the model, from which negative layers count; None if it is not known."""
    base_norms: Mapping[str, Float[Tensor, " token"]] = field(default_factory=dict)
    """Hook name to ‖A‖ of the activation that Δ is measured from, in its units, in float32."""

    def __getitem__(self, hook: HookKey) -> Float[Tensor, "token ..."]:
        """Δ at one hook point, `[token, …]`: `captured["resid_post", 3]` or `captured["blocks.3.hook_resid_post"]`.

        Args:
            hook: A kind and a layer (negative layers count from the end), or a hook name.

        Raises:
            InputError: that hook point was not captured.
        """
        return self.deltas[captured_name(hook, self.deltas, self.n_layers)]

    def __repr__(self) -> str:
        """Numbers of hook points, tokens and responses, in one line."""
        return f"Captured({counted(len(self.deltas), 'hook point')}, {self._tokens()}, {self.difference}, span {self.span})"

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
        about = f"{self.difference} Δ of {self._tokens()}, span {self.span}"
        return table(("hook point", "shape of a token", "median ‖Δ‖", "99 % within", "MB"), rows, about)

    def _tokens(self) -> str:
        return f"{counted(len(self), 'token')} of {counted(len(self.tokens.triplet.unique()), 'response')}"

    @checks_arguments
    def magnitude(self, hook: HookKey) -> Float[Tensor, " token"]:
        """‖Δ‖ of each token at one hook point, in float32 (float64 for a Δ in float64).

        Args:
            hook: A kind and a layer, or a hook name; as for `captured[…]`.

        Raises:
            InputError: that hook point was not captured.

        Example:
            >>> len(captured.magnitude(("resid_post", 3))) == len(captured)
            True
        """
        delta = self[hook].flatten(start_dim=1)
        # In half precision a sum of squares overflows where the numbers themselves do not.
        norms: Tensor = torch.linalg.vector_norm(delta, dim=1, dtype=torch.promote_types(delta.dtype, torch.float32))
        return norms


@dataclass(frozen=True)
class InMemory:
    """Destination of `capture` that keeps every difference in main memory; the default.

    Example:
        >>> import torch
        >>> half = psr.capture(model, triplets[:4], to=psr.InMemory(torch.float16))
        >>> half["resid_post", 0].dtype
        torch.float16
    """

    dtype: torch.dtype | None = None
    """Data type to keep numbers in; None for that of the model."""

    def __post_init__(self) -> None:
        """Refuse fields of another type."""
        check_fields(self)

    @checks_arguments
    def receive(self, reading: PairedReading) -> Captured:
        """Read all differences; called by `capture`.

        Example:
            >>> psr.capture(model, triplets[:4], to=psr.InMemory())
            Captured(6 hook points, ... tokens of 4 responses, accumulated, span R)
        """
        rows = Rows(reading.triplets, reading.span, self.dtype)
        norms = Rows(reading.triplets, reading.span, torch.float32)
        with reading.bar() as bar:
            for indices in reading.batches(range(len(reading.triplets))):
                reading.read(indices, rows.of(indices), norms.of(indices))
                bar.update(sum(rows.counts[index] for index in indices))
        return Captured(
            {name: rows.tensors[name] for name in reading.shapes},
            token_table(reading.model, reading.triplets, reading.span),
            reading.span,
            reading.difference,
            int(reading.model.cfg.n_layers),
            {name: norms.tensors[name] for name in reading.hooks},
        )


@overload
def capture(
    model: HookedModel,
    triplets: Sequence[Triplet],
    hooks: str | Sequence[str] = ...,
    *,
    to: None = ...,
    layers: Layers | None = ...,
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
    layers: Layers | None = ...,
    span: Span = ...,
    difference: Difference = ...,
    token_budget: int = ...,
) -> T_co: ...


@checks_arguments
def capture(
    model: HookedModel,
    triplets: Sequence[Triplet],
    hooks: str | Sequence[str] = "resid_post",
    *,
    to: Destination[object] | None = None,
    layers: Layers | None = None,
    span: Span = "R",
    difference: Difference = "accumulated",
    token_budget: int = TOKEN_BUDGET,
) -> object:
    """Capture the difference Δ that an instruction makes to activations, at any set of hook points.

    Args:
        model: The model; it is left unchanged.
        triplets: Prompt pairs with responses.
        hooks: `"all"`, a kind, a hook name, a glob pattern, or several (see `select_hooks`).
        to: Where the differences go: `InMemory()` (None), `Statistics()` or `OnDisk(folder)`.
        layers: Only hook points of these layers; negative ones count from the end.
        span: `"R"`, the response and the last prompt token, or `"QR"`, the question too.
        difference: `"accumulated"` (prompted minus base context) or `"local"` (what each layer adds by itself).
        token_budget: Most tokens in a batch, padding included.

    Returns:
        What the destination makes: `Captured`, `CapturedStatistics` or a `Store`, with one row per token of the span.

    Raises:
        InputError: `model` is not a model, there are no triplets, a response is empty or too long, a hook point or difference is unknown,
            or a layer is out of range.
        ModelError: a difference is not finite, or too large for the type in which it is to be kept; names the hook point.

    Example:
        >>> captured = psr.capture(model, triplets[:4], ["resid_post", "z"], layers=[0, -1])
        >>> captured["z", -1].shape[1:]  # [token, head, d_head]
        torch.Size([4, 32])
    """
    if token_budget < 1:
        raise InputError("token_budget", token_budget, "at least 1")
    triplets = list(triplets)
    names = select_hooks(model, hooks, layers)
    check_triplets(model, triplets)
    dtype = dtype_of(model)
    shapes = _row_shapes(model, triplets, names)
    reading = PairedReading(model, triplets, shapes, dtype, span, difference, token_budget)
    with torch.no_grad(), frozen(model):
        return (InMemory() if to is None else to).receive(reading)


def _check_destination(to: object, argument: str) -> None:
    if isinstance(to, type) or not callable(getattr(to, "receive", None)):
        expected = "InMemory(), Statistics(), OnDisk(folder), or an object with a method `receive`"
        raise InputError(argument, described(to), expected)


CHECKS[Destination[object]] = _check_destination


def _row_shapes(model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    columns = key_counts(triplets) if any(map(is_pattern, names)) else (0, 0)
    for name, shape in hook_shapes(model, names).items():
        if is_pattern(name):
            shapes |= {name: (*shape, columns[0]), f"{name}{INSTRUCTION}": (*shape, columns[1])}
        else:
            shapes[name] = shape
    return shapes
