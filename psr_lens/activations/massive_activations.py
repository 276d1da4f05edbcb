"""Massive activations of response tokens, in the base and the prompted context: `massive_activations` and its result."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens._utils.optional import package
from psr_lens._utils.progress import progress_bar
from psr_lens._utils.sequences import ranges
from psr_lens.activations.batches import ContextBatch, context_batch, length_batches
from psr_lens.activations.finite import check_finite
from psr_lens.activations.massive_finder import RATIO, Found, MassiveFinder
from psr_lens.activations.paired_passes import TOKEN_BUDGET, Rows
from psr_lens.activations.teacher_forced_pass import gather, layers_needed
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, device_of, forward, frozen, hooked, tokenizer_of
from psr_lens.models.hook_points import Layers, check_layers
from psr_lens.prompts import Context, Span, TokenTable, Triplet, check_triplets
from psr_lens.prompts.token_text import readable, token_strings

if TYPE_CHECKING:
    import pandas as pd

CONTEXTS: tuple[Context, ...] = ("base", "prompted")
"""The contexts that are searched."""


@dataclass(frozen=True, repr=False)
class MassiveToken:
    """A token that has a massive activation after at least one layer, in at least one context."""

    triplet: int
    """Index of its triplet."""
    position: int
    """Position in the response; −1 is the last prompt token."""
    string: str
    """The token as the vocabulary spells it."""
    layers: tuple[int, ...]
    """The layers after which it is massive in any context."""
    norm: Mapping[str, tuple[float, ...]]
    """Context to the token's norm after each of these layers, in the activation's units."""
    massive: Mapping[str, tuple[bool, ...]]
    """Context to whether the token is massive there after each of these layers."""
    dimensions: tuple[int, ...]
    """The dimensions of the residual stream that carry its massive numbers."""

    @property
    def contexts(self) -> tuple[str, ...]:
        """The contexts in which it is massive after any layer."""
        return tuple(context for context, after in self.massive.items() if any(after))

    @property
    def in_all_contexts(self) -> bool:
        """Whether it is massive in every context that was read, though not necessarily after the same layers."""
        return len(self.contexts) == len(self.massive)

    def __repr__(self) -> str:
        """Token, position, layers and largest norm in each context, on one line."""
        norms = ", ".join(f"{max(norms):.4g} {context}" for context, norms in self.norm.items())
        where = f"at position {self.position} of response {self.triplet}"
        return f"MassiveToken({self.string!r} {where}, after layers {ranges(self.layers)}; norm {norms})"


@dataclass(frozen=True, eq=False, repr=False)
class MassiveActivations:
    """The tokens with massive activations, as `massive_activations` and `compare` return them.

    Example:
        >>> psr.massive_activations(model, triplets[:4])
        MassiveActivations(none in ... tokens of 4 responses, after layers 0–5)
    """

    tokens: tuple[MassiveToken, ...]
    """The tokens found, in the order of the responses."""
    layers: tuple[int, ...]
    """The layers that were searched."""
    typical: Mapping[str, Float[Tensor, " layer"]]
    """Context to the norm of the median token after each layer, accurate to 1 %, in the activation's units."""
    searched: int
    """Number of tokens that were searched."""
    responses: int
    """Number of responses."""
    span: Span
    """Which tokens were searched."""
    ratio: float
    """Least largest number of a massive token, in norms of the median token."""

    def __len__(self) -> int:
        """Number of tokens with a massive activation."""
        return len(self.tokens)

    def __repr__(self) -> str:
        """How many, of how many, and where, in one line."""
        return f"MassiveActivations({self._found()})"

    @property
    def summary(self) -> str:
        """How many tokens have a massive activation, after which layers, and how many of them in some contexts only, in a sentence."""
        if not self.tokens:
            return f"No massive activations in {counted(self.searched, 'token')}"
        has = "has" if len(self) == 1 else "have"
        return f"{len(self):,} of {counted(self.searched, 'token')} {has} a massive activation, {self._where()}"

    @checks_arguments
    def count(self, context: str | None = None) -> Int[Tensor, " layer"]:
        """Number of massive tokens after each layer.

        Args:
            context: `"base"`, `"prompted"`, or another context that was read; None counts tokens that are massive in any of them.

        Raises:
            InputError: that context was not read.

        Example:
            >>> psr.massive_activations(model, triplets[:4]).count("base")
            tensor([0, 0, 0, 0, 0, 0])
        """
        if context is not None and context not in self.typical:
            raise InputError("context", repr(context), f"one of {', '.join(map(repr, self.typical))}, or None for any of them")
        counts = dict.fromkeys(self.layers, 0)
        for token in self.tokens:
            after = token.massive[context] if context is not None else [True] * len(token.layers)
            for layer, massive in zip(token.layers, after, strict=True):
                counts[layer] += massive
        return torch.tensor(list(counts.values()))

    @checks_arguments
    def mask(self, tokens: TokenTable) -> Bool[Tensor, "token layer"]:
        """Which rows are massive after each of the layers searched, in any context.

        Args:
            tokens: What each row is, from a result on the same triplets.

        Example:
            >>> ordinary = ~psr.massive_activations(model, triplets[:4]).mask(comparison.tokens)
            >>> comparison.magnitude[ordinary].isfinite().all()
            tensor(True)
        """
        rows = {at: row for row, at in enumerate(zip(tokens.triplet.tolist(), tokens.position.tolist(), strict=True))}
        mask = torch.zeros(len(tokens), len(self.layers), dtype=torch.bool)
        for token in self.tokens:
            mask[rows[token.triplet, token.position], [self.layers.index(layer) for layer in token.layers]] = True
        return mask

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row for each massive token and layer.

        Columns: `triplet`, `position` (−1 is the last prompt token), `token`, `layer`, `dimensions`, and for each context, such as `base`,
        whether the token is massive there (`massive_base`), its norm (`norm_base`) and that of the median token (`typical_base`).

        Raises:
            MissingPackageError: pandas is not installed.

        Example:
            >>> list(psr.massive_activations(model, triplets[:4]).to_pandas().columns)[:5]
            ['triplet', 'position', 'token', 'layer', 'dimensions']
        """
        pandas = package("pandas", "pandas")
        names = [f"{what}_{context}" for context in self.typical for what in ("massive", "norm", "typical")]
        rows = [
            (
                token.triplet,
                token.position,
                token.string,
                layer,
                token.dimensions,
                *(
                    value
                    for context, typical in self.typical.items()
                    for value in (
                        token.massive[context][index],
                        token.norm[context][index],
                        float(typical[self.layers.index(layer)]),
                    )
                ),
            )
            for token in self.tokens
            for index, layer in enumerate(token.layers)
        ]
        frame: pd.DataFrame = pandas.DataFrame(rows, columns=["triplet", "position", "token", "layer", "dimensions", *names])
        return frame

    def _repr_html_(self) -> str:
        return table(*listing(self), self._found())

    def _found(self) -> str:
        of = f"{counted(self.searched, 'token')} of {counted(self.responses, 'response')}"
        if not self.tokens:
            return f"none in {of}, after layers {ranges(self.layers)}"
        return f"{len(self):,} of {of}, {self._where()}"

    def _where(self) -> str:
        layers = {layer for token in self.tokens for layer in token.layers}
        some = sum(not token.in_all_contexts for token in self.tokens)
        only = "one of the two contexts" if len(self.typical) == 2 else f"some of the contexts ({', '.join(self.typical)})"
        if some == len(self) == 1:
            flips = f", in only {only}"
        else:
            flips = f"; {'all' if some == len(self) else f'{some:,}'} of them in only {only}" if some else ""
        return f"after layer{'s' if len(layers) > 1 else ''} {ranges(layers)}{flips}"


def listing(found: MassiveActivations) -> tuple[list[str], list[tuple[object, ...]]]:
    """The headings and rows of a table with one row per token, with its norms at the layer where the largest of them is."""
    contexts, strings = list(found.typical), [token.string for token in found.tokens]
    rows: list[tuple[object, ...]] = []
    for token, text in zip(found.tokens, readable(strings, strings), strict=True):
        index = max(range(len(token.layers)), key=lambda at: max(norms[at] for norms in token.norm.values()))
        layer = token.layers[index]
        norms = [f"{token.norm[context][index]:.4g}" for context in contexts]
        medians = [f"{float(found.typical[context][found.layers.index(layer)]):.3g}" for context in contexts]
        typical = " / ".join(medians if len(set(medians)) > 1 else medians[:1])
        where = "all" if token.in_all_contexts else ", ".join(token.contexts)
        dimensions = ", ".join(map(str, token.dimensions))
        rows.append((text, token.triplet, token.position, ranges(token.layers), where, layer, *norms, typical, dimensions))
    head = ["token", "response", "position", "after layers", "in contexts", "largest after"]
    return [*head, *(f"norm, {context}" for context in contexts), "median token", "dimensions"], rows


@checks_arguments
def massive_activations(
    model: HookedModel,
    triplets: Sequence[Triplet],
    *,
    layers: Layers = "all",
    span: Span = "R",
    ratio: float = RATIO,
    token_budget: int = TOKEN_BUDGET,
) -> MassiveActivations:
    """Find the tokens at which a single number of the residual stream outweighs many ordinary tokens (Sun et al. 2024).

    A token is massive after a layer if its largest number is at least `ratio` times the norm of the median token there, in the base
    context or in the prompted one. A token that is massive in one context only has an enormous Δ, which dominates sums of squares.

    Sun et al. call a number massive if it is above 100 and around 1,000 times the median magnitude of the hidden state. Those bounds
    depend on a model's scale and width; the norm of the median token does not.

    Args:
        model: The model; it is not changed.
        triplets: Prompt pairs with responses.
        layers: Layers after which the residual stream is searched.
        span: Which tokens are searched.
        ratio: Least largest number of a massive token, in norms of the median token; above 1.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        The tokens with their norms in both contexts. Memory grows with the tokens found, not with those searched.

    Raises:
        InputError: no triplets, a layer out of range, or a ratio of 1 or less.
        ModelError: activations are not finite; names the hook point.

    Example:
        >>> psr.massive_activations(model, triplets[:4], layers=[0, 5])
        MassiveActivations(none in ... tokens of 4 responses, after layers 0, 5)
    """
    if not ratio > 1:
        raise InputError("ratio", ratio, "a number above 1")
    check_triplets(model, triplets)
    wanted = check_layers(model, layers)
    names = [f"blocks.{layer}.hook_resid_post" for layer in wanted]
    finder, rows, device = MassiveFinder(len(wanted), len(CONTEXTS), ratio), Rows(triplets, span), device_of(model)
    for indices in progress_bar(list(length_batches(triplets, token_budget)), desc="massive activations", unit="batch"):
        chosen = [triplets[index] for index in indices]
        for number, context in enumerate(CONTEXTS):
            _look(model, context_batch(chosen, context, span, device), names, partial(finder.look, context=number))
        finder.add(rows.at(indices))
    return listed(finder.finish(), model, triplets, span, wanted, CONTEXTS, ratio)


def _look(model: HookedModel, batch: ContextBatch, names: Sequence[str], look: Callable[..., None]) -> None:
    """Show a batch's activations at some hook points to `look`, one hook point at a time."""

    def shown_as(column: int, name: str) -> Any:
        def hook(activation: Tensor, hook: Any) -> None:
            rows = gather(activation.detach(), batch, batch.rows, name)
            check_finite({name: rows})
            look(column, activations=rows)

        return hook

    hooks = [(name, shown_as(column, name)) for column, name in enumerate(names)]
    with torch.no_grad(), frozen(model), hooked(model, hooks):
        forward(model, batch.tokens, batch.mask, layers_needed(names))


def listed(
    found: Found,
    model: HookedModel,
    triplets: Sequence[Triplet],
    span: Span,
    layers: Sequence[int],
    contexts: Sequence[str],
    ratio: float = RATIO,
) -> MassiveActivations:
    """What a `MassiveFinder` found in the tokens of triplets, by token."""
    offsets, tokenizer, tokens = Rows(triplets, span).offsets, tokenizer_of(model), []
    for row, entries in groupby(range(len(found.row)), key=lambda entry: int(found.row[entry])):
        at = list(entries)
        index = bisect_right(offsets, row) - 1
        triplet = triplets[index]
        position = row - offsets[index] - triplet.pair.span_length(span)
        token_id = triplet.response_ids[position] if position >= 0 else triplet.pair.base_ids[position]
        dimensions = found.dimension[at].flatten()
        tokens.append(
            MassiveToken(
                index,
                position,
                token_strings(tokenizer, [token_id])[0],
                tuple(layers[column] for column in found.column[at].tolist()),
                {context: tuple(found.norm[at, column].tolist()) for column, context in enumerate(contexts)},
                {context: tuple(found.massive[at, column].tolist()) for column, context in enumerate(contexts)},
                tuple(sorted(set(dimensions[dimensions >= 0].tolist()))),
            )
        )
    typical = {context: found.typical[:, column].clone() for column, context in enumerate(contexts)}
    return MassiveActivations(tuple(tokens), tuple(layers), typical, offsets[-1], len(triplets), span, ratio)
