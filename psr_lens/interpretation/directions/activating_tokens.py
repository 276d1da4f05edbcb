"""The tokens of a corpus that a replacement pushes hardest."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted, is_whole
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches
from psr_lens.activations.paired_passes import TOKEN_BUDGET, row_counts
from psr_lens.activations.teacher_forced_pass import PassSteering, read_batch
from psr_lens.errors import InputError
from psr_lens.models import HookedModel, tokenizer_of
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Span, Triplet, check_triplets
from psr_lens.prompts.token_text import token_strings
from psr_lens.replacement import Replacement, check_compatible

CONTEXT: Final = 24
"""Tokens of context that are kept on either side: about a sentence."""
_NEAR: Final = 8
"""Tokens of context in a notebook's table."""


@dataclass(frozen=True, repr=False)
class TopToken:
    """One token that a replacement pushes hard."""

    coefficient: float
    """‖λ(A)·z‖, the length of what is added at α = 1, in the activation's units, with the sign of λ if the site has a single direction; if
    one direction was asked for, its λ. Below 0, the token is pushed backwards, as the rules `linear` and `projection` may do."""
    token: str
    """The token as the vocabulary spells it."""
    before: tuple[str, ...]
    """The tokens before it, prompt included."""
    after: tuple[str, ...]
    """The tokens after it."""
    triplet: int
    """Index of the triplet."""
    position: int
    """Position in the response; −1 is the last prompt token."""

    def __repr__(self) -> str:
        """Token, coefficient and where it is, on one line."""
        return f"TopToken({self.token!r}, {self.coefficient:.3g}, position {self.position} of response {self.triplet})"


@dataclass(frozen=True, repr=False)
class TopTokens:
    """The tokens of a corpus that one site of a replacement pushes hardest."""

    hook: str
    """Hook point of the site."""
    layer: int | None
    """Its layer; None outside of layers."""
    direction: int | None
    """Index of the direction; None for all directions together."""
    tokens: tuple[TopToken, ...]
    """The tokens, hardest pushed first."""
    searched: int
    """Number of tokens searched."""
    active: int
    """Number of them with a coefficient other than 0."""

    def __repr__(self) -> str:
        """The site, and how many tokens were found and searched."""
        which = "" if self.direction is None else f", direction {self.direction}"
        return f"TopTokens({self.hook}{which}: top {len(self.tokens)} of {counted(self.searched, 'token')}, {self.active:,} active)"

    def _repr_html_(self) -> str:
        rows = [
            (each.coefficient, " ".join(each.before[-_NEAR:]), each.token, " ".join(each.after[:_NEAR])) for each in self.tokens
        ]
        return table(("coefficient", "before", "token", "after"), rows, repr(self))


@checks_arguments
def top_tokens(
    model: HookedModel,
    triplets: Sequence[Triplet],
    replacement: Replacement,
    k: int = 20,
    *,
    layer: int | None = None,
    direction: int | None = None,
    span: Span | None = None,
    per_response: int | None = 1,
) -> TopTokens:
    """The tokens of a corpus that a replacement pushes hardest, with their context.

    The replacement steers the model at α = 1 while the corpus is read, so coefficients are those of real use. Tokens that are pushed
    backwards count like others, by the length of the push. Use `with_responses` to make triplets of any texts.

    Args:
        model: The model.
        triplets: The corpus.
        replacement: The replacement.
        k: Number of tokens.
        layer: Layer of the site; by default the one with the largest single coefficient.
        direction: Index of one direction of the site; by default all directions together.
        span: Tokens to search; by default the replacement's own span.
        per_response: Largest number of tokens from one response; None for no limit.

    Raises:
        InputError: no triplets, or a layer or direction that the replacement does not have.
        ArtifactError: the replacement was made for another model.

    Example:
        >>> found = psr.top_tokens(model, triplets[:4], pirate, 3)
        >>> len(found.tokens)
        3
        >>> abs(found.tokens[0].coefficient) >= abs(found.tokens[1].coefficient)
        True
    """
    check_triplets(model, triplets)
    if not isinstance(replacement, Replacement):
        raise InputError("replacement", f"a {type(replacement).__name__}", "a Replacement", "`psr.fit` makes one.")
    check_compatible(replacement, model)
    for name, value in (("k", k), ("per_response", 1 if per_response is None else per_response)):
        if not is_whole(value) or value < 1:
            raise InputError(name, repr(value), "a whole number, 1 or more")
    names = [name for name in replacement.sites if layer is None or layer_of(name) == layer]
    if not names:
        acts = sorted({str(layer_of(name)) for name in replacement.sites})
        raise InputError("layer", repr(layer), f"a layer at which the replacement acts ({', '.join(acts)})")
    ranks = {replacement.sites[name].rank for name in names}
    if direction is not None and not 0 <= direction < min(ranks):
        remedy = "Give `layer`, since sites have different ranks." if len(ranks) > 1 else ""
        raise InputError("direction", direction, f"0 to {min(ranks) - 1}, or None for all together", remedy)
    search = _Search(replacement, names, span or replacement.span, direction, k, per_response)
    for indices in progress_bar(list(length_batches(triplets, TOKEN_BUDGET)), desc="top tokens", unit="batch"):
        search.read(model, triplets, indices)
    name = max(names, key=lambda name: search.best[name][-1][0] if search.best[name] else -1.0)
    return TopTokens(
        name,
        layer_of(name),
        direction,
        tuple(_in_context(model, triplets, found, search.span) for found in search.hardest(name)),
        search.searched,
        search.active[name],
    )


class _Search:
    """The hardest pushed tokens of each site so far; memory does not grow with the corpus."""

    def __init__(
        self, replacement: Replacement, names: Sequence[str], span: Span, direction: int | None, k: int, per_response: int | None
    ) -> None:
        self.replacement, self.names, self.span = replacement, names, span
        self.direction, self.k, self.most = direction, k, per_response
        self.best: dict[str, list[tuple[float, int, int, float]]] = {name: [] for name in names}
        """Length of the push, −triplet, −row and coefficient of the tokens found so far, in ascending order."""
        self.active = dict.fromkeys(names, 0)
        self.searched = 0

    def read(self, model: HookedModel, triplets: Sequence[Triplet], indices: Sequence[int]) -> None:
        """Search one batch of triplets."""
        chosen = [triplets[index] for index in indices]
        arriving = read_batch(
            model, chosen, [], "base", self.span, steered=PassSteering(self.replacement, arriving=self.names)
        ).arriving
        counts = row_counts(chosen, self.span)
        self.searched += sum(counts)
        for name in self.names:
            coefficient = self._coefficient(name, arriving[name].float().cpu())
            self.active[name] += int((coefficient != 0).sum())
            for index, own in zip(indices, coefficient.split(counts), strict=True):
                rows = own.abs().topk(min(self.most or self.k, self.k, len(own))).indices
                pushed = [
                    (abs(value), -index, -row, value) for row, value in zip(rows.tolist(), own[rows].tolist(), strict=True) if value
                ]
                self.best[name] = sorted(heapq.nlargest(self.k, [*self.best[name], *pushed]))

    def _coefficient(self, name: str, activation: Float[Tensor, "token ..."]) -> Float[Tensor, " token"]:
        site = self.replacement.sites[name].to(torch.device("cpu"), torch.float32)
        found = site.coefficients(activation).reshape(len(activation), -1, site.rank)  # [token, head, direction]
        if self.direction is None:
            whole: Tensor = torch.linalg.vector_norm(site.intervention(activation).flatten(1), dim=1)
            return whole * found[:, 0, 0].sign() if found.shape[1:] == (1, 1) else whole
        own = found[..., self.direction]
        return own.gather(1, own.abs().argmax(dim=1, keepdim=True))[:, 0]  # of the head where it is strongest

    def hardest(self, name: str) -> list[tuple[float, int, int]]:
        """Coefficient, triplet and row in the triplet's span, hardest pushed first."""
        return [(value, -index, -row) for _, index, row, value in reversed(self.best[name])]


def _in_context(model: HookedModel, triplets: Sequence[Triplet], found: tuple[float, int, int], span: Span) -> TopToken:
    coefficient, index, row = found
    triplet = triplets[index]
    ids = (*triplet.pair.base_ids, *triplet.response_ids)
    position = row - triplet.pair.span_length(span)
    at = len(triplet.pair.base_ids) + position
    before, (token,), after = ids[max(0, at - CONTEXT) : at], ids[at : at + 1], ids[at + 1 : at + 1 + CONTEXT]
    spelled = partial(token_strings, tokenizer_of(model))
    return TopToken(coefficient, spelled([token])[0], spelled(before), spelled(after), index, position)
