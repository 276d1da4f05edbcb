"""The result of `score_attribution`: what makes the queries of a head look for the instruction, context by context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted, is_whole
from psr_lens.errors import InputError
from psr_lens.prompts import TokenTable
from psr_lens.results.bootstrap import Estimate, estimate, ratio

SourceKind = Literal["embedding", "attention", "mlp", "replacement", "bias"]
"""What a part of a query's residual stream comes from."""


class Source(NamedTuple):
    """One part of what a query is made of."""

    kind: SourceKind
    """`embedding`: what enters the first block, with position embeddings and what a method adds there; `attention`, `mlp`: the output of
    a block; `replacement`: what a method adds to the residual stream in a block, or at `hook_resid_pre` of the one above it; `bias`: the
    query of an empty residual stream."""
    layer: int | None = None
    """The block; None for `embedding` and `bias`."""

    def __str__(self) -> str:
        """As figures show it, `MLP 3`."""
        kind = "MLP" if self.kind == "mlp" else self.kind
        return kind if self.layer is None else f"{kind} {self.layer}"


@dataclass(frozen=True, eq=False, repr=False)
class ScoreAttribution:
    """Attention scores between responses and the instruction, split by what the queries are made of.

    A score difference is the mean score of a query with the instruction's tokens, minus its mean score with all other tokens that it can
    see. Keys are those of the prompted run in every context, so that contexts differ by their queries alone.

    Example:
        >>> result = psr.score_attribution(model, triplets[:4], {"A-PSR": pirate}, [(2, 3)])
        >>> result
        ScoreAttribution('talk like a pirate', 1 head × ... tokens × 8 sources; contexts: prompt, none, A-PSR)
        >>> bool(torch.allclose(result.parts.sum(-1), result.score, atol=1e-3))
        True
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    heads: tuple[tuple[int, int], ...]
    """Layer and index of each head."""
    contexts: tuple[str, ...]
    """Whose queries are asked: `prompt`, `none` (the base run), and the base run steered with each method."""
    alphas: Mapping[str, float]
    """Strength α of each method."""
    tokens: TokenTable
    """The token of each query: the last prompt token and the response."""
    sources: tuple[Source, ...]
    """What the queries are made of, in the model's order."""
    parts: Float[Tensor, "context head token source"]
    """Part of the score difference from each source; 0 for sources at or above the head's layer. NaN on tokens that can see no token of the
    instruction, as with a sliding window."""
    score: Float[Tensor, "context head token"]
    """The score difference that the model computes, before the softmax; the parts sum to it."""
    attention: Float[Tensor, "context head token"]
    """Attention to all tokens of the instruction that follows from these scores, from 0 to 1."""

    @property
    def remainder(self) -> Float[Tensor, " head"]:
        """‖sum of the parts − score‖ / ‖score‖ over contexts and tokens, a check of exactness: rounding only.

        Example:
            >>> result = psr.score_attribution(model, triplets[:4], {"A-PSR": pirate}, [(2, 3)])
            >>> bool((result.remainder < 1e-4).all())
            True
        """
        error, score = (
            (values.nan_to_num().square().sum((0, 2))).sqrt() for values in (self.parts.sum(-1) - self.score, self.score)
        )
        return error / score.clamp(min=torch.finfo(score.dtype).tiny)

    def by_source(self) -> Float[Tensor, "context head source"]:
        """The mean over tokens of each part.

        Example:
            >>> result = psr.score_attribution(model, triplets[:4], {"A-PSR": pirate}, [(2, 3)])
            >>> result.by_source().shape
            torch.Size([3, 1, 8])
        """
        return self.parts.nanmean(2)

    @checks_arguments
    def mean(self, context: str, head: int = 0) -> Estimate:
        """The mean score difference of a context's queries, with its 95 % interval over responses.

        Args:
            context: One of `contexts`.
            head: Index into `heads`.

        Raises:
            InputError: no such context or head.

        Example:
            >>> result = psr.score_attribution(model, triplets[:4], {"A-PSR": pirate}, [(2, 3)])
            >>> bool(result.mean("A-PSR").value > result.mean("none").value)
            True
        """
        return self._mean(self.score, context, head)

    @checks_arguments
    def mean_attention(self, context: str, head: int = 0) -> Estimate:
        """The mean attention to the instruction, with its 95 % interval over responses; arguments and errors as for `mean`.

        Example:
            >>> result = psr.score_attribution(model, triplets[:4], {"A-PSR": pirate}, [(2, 3)])
            >>> bool(result.mean_attention("prompt").value <= 1)
            True
        """
        return self._mean(self.attention, context, head)

    def _mean(self, values: Float[Tensor, "context head token"], context: str, head: int) -> Estimate:
        if context not in self.contexts:
            raise InputError("context", repr(context), f"one of {', '.join(map(repr, self.contexts))}")
        if not is_whole(head) or not 0 <= head < len(self.heads):
            raise InputError("head", repr(head), f"0 to {len(self.heads) - 1}, an index into `heads`")
        chosen = values[self.contexts.index(context), head].double().numpy()
        owner, known = self.tokens.triplet.numpy(), np.isfinite(chosen)
        count = int(owner.max()) + 1
        sums, counts = (np.bincount(owner, each, count) for each in (np.where(known, chosen, 0), known.astype(float)))
        return estimate(ratio(sums, counts), count)

    def __repr__(self) -> str:
        """Heads, tokens, sources and contexts."""
        size = f"{counted(len(self.heads), 'head')} × {counted(len(self.tokens), 'token')} × {counted(len(self.sources), 'source')}"
        return f"ScoreAttribution({self.instruction!r}, {size}; contexts: {', '.join(self.contexts)})"

    def _repr_html_(self) -> str:
        rows = [
            (f"L{layer}H{head}", *(f"{float(self.mean(context, at).value):.2f}" for context in self.contexts))
            for at, (layer, head) in enumerate(self.heads)
        ]
        return table(("head", *self.contexts), rows, f"{self!r}: mean score difference")
