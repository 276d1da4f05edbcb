"""What an attribution is: norms and shares of the parts of Δ, and the heads that read the instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.paired_passes import Difference
from psr_lens.errors import InputError
from psr_lens.prompts import Span, TokenTable

Part = Literal["instruction", "removed", "dilution", "inputs", "norm"]
"""What a head's output changes by. `instruction`: what it reads from the tokens that only the prompted context has; `removed`: what it no
longer reads from tokens that only the base prompt has; `dilution`: its attention to the tokens of both prompts changed; `inputs`: their
values changed; `norm`: a norm behind the attention (Gemma-2) scales the sum over heads differently."""

PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""All parts of a head's change, in the order of the last dimension of `Split.heads`."""

Measure = Literal["share", "norm"]
"""`share`: of Δ, signed; `norm`: length, in the activation's units."""


class HeadReading(NamedTuple):
    """One head, and how much of one part it has."""

    layer: int
    """Its layer."""
    head: int
    """Its number in the layer."""
    value: float
    """The mean over tokens of what the heads were ordered by: a share of Δ, or a length in the activation's units."""

    def __str__(self) -> str:
        """As the literature writes it, `L3H1`."""
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True)
class Split:
    """One number for each part of Δ, on each token."""

    heads: Float[Tensor, "token layer head part"]
    """The parts of each head, in the order of `PARTS`."""
    mlp: Float[Tensor, "token layer"]
    """The change of each MLP's output."""
    direct: Float[Tensor, "token layer"]
    """What came in from below: the difference of the residual stream before each layer; where everything below is split up too, the
    difference of the embeddings, in the first column, and 0 in all others."""

    def total(self) -> Float[Tensor, "token layer"]:
        """The sum over everything at each layer."""
        summed: Tensor = self.heads.sum((2, 3)) + self.mlp + self.direct
        return summed


@dataclass(frozen=True)
class Sources:
    """Which of the instruction's tokens each head reads, by triplet; NaN past the end of a shorter instruction."""

    share: Float[Tensor, "triplet layer head source"]
    """Share of Δ that comes from each source token: Σ⟨part, Δ⟩ / Σ‖Δ‖² over the tokens of the response. Summed over the source tokens
    it is the `instruction` part."""
    attention: Float[Tensor, "triplet layer head source"]
    """Mean attention to each source token, over the tokens of the response."""
    strings: tuple[tuple[str, ...], ...]
    """The source tokens of each triplet as text: those that only its prompted context has, its chat template's among them."""


@dataclass(frozen=True)
class Attribution:
    """Δ split into what each head and each MLP contributes to it."""

    instruction: str
    """The instruction of the first triplet."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    span: Span
    """Which tokens were read."""
    difference: Difference
    """Which difference was split."""
    target: int | None
    """The layer whose Δ everything is a share of, with all layers up to it split up; None where each layer's own Δ is."""
    tokens: TokenTable
    """What each row is."""
    layers: tuple[int, ...]
    """The layers of the columns."""
    magnitude: Float[Tensor, "token layer"]
    """‖Δ‖ after each layer."""
    norm: Split
    """Lengths of the parts, in the activation's units."""
    share: Split
    """⟨part, Δ⟩ / ‖Δ‖²: how far each part goes along Δ. The shares of a token sum to 1 at every layer, or with a `target` over all
    layers. A part that works against Δ has a negative one. 0 throughout where Δ is 0 or
    nothing but rounding."""
    remainder: Float[Tensor, " layer"]
    """‖sum of the parts − Δ‖ / ‖Δ‖ over all tokens at each layer: rounding, and nothing else; 0 where Δ is 0."""
    projections: tuple[Split, ...] = ()
    """Coordinates of the parts along each direction given as `project`, of length 1, in the activation's units; NaN at layers that have
    fewer directions."""
    sources: Sources | None = None
    """By source token, if that was asked for."""

    def reading(
        self, part: Part = "instruction", measure: Measure = "share", token: int | None = None
    ) -> Float[Tensor, "layer head"]:
        """One part of every head: the map of the heads that read the instruction, unless another part is asked for.

        Args:
            part: One of `PARTS`.
            measure: `"share"` of Δ, or `"norm"`.
            token: A row of `tokens`; None for the mean over all tokens, in which shares are weighted with ‖Δ‖², so that they are those
                of the whole, and tokens on which the instruction changes next to nothing do not drown the others.

        Raises:
            InputError: no such part, measure or token.
        """
        if part not in PARTS:
            raise InputError("part", repr(part), f"one of {', '.join(PARTS)}")
        if measure not in get_args(Measure):
            raise InputError("measure", repr(measure), "'share' or 'norm'")
        values = (self.share if measure == "share" else self.norm).heads[..., PARTS.index(part)]
        if token is not None:
            if not -len(self.tokens) <= token < len(self.tokens):
                raise InputError("token", token, f"a row from 0 to {len(self.tokens) - 1}")
            return values[token]
        if measure == "norm":
            return values.mean(0)
        return torch.einsum("tlh,tl->lh", values, self._weights())

    def by_layer(self, token: int | None = None) -> dict[str, Float[Tensor, " layer"]]:
        """Share of each part at each layer, summed over heads, and of `mlp` and `direct`; the mean over tokens as in `reading`."""
        weights = self._weights()
        named: dict[str, Tensor] = {part: self.share.heads[..., place].sum(-1) for place, part in enumerate(PARTS)}
        named |= {"mlp": self.share.mlp, "direct": self.share.direct}
        return {name: (share * weights).sum(0) if token is None else share[token] for name, share in named.items()}

    def top_heads(self, count: int, part: Part = "instruction", measure: Measure = "share") -> tuple[HeadReading, ...]:
        """The heads with the most of one part, the largest first.

        Without a `target` each head is measured against Δ after its own layer. That finds early heads that read the instruction, of
        which later layers make the most; on the embedded models these are the heads without which the trait is gone. With a `target`
        all heads are measured against one Δ, which finds those that write to it themselves.

        Raises:
            InputError: `count` is not from 1 to the number of heads; no such part or measure.
        """
        values = self.reading(part, measure)
        if not 1 <= count <= values.numel():
            raise InputError("count", count, f"a number from 1 to {values.numel()}, as many heads as were read")
        order = values.flatten().argsort(descending=True, stable=True)[:count].tolist()
        width = values.shape[1]
        return tuple(HeadReading(self.layers[at // width], at % width, float(values.flatten()[at])) for at in order)

    def _weights(self) -> Float[Tensor, "token layer"]:
        """‖Δ‖² of each token as a share of the whole."""
        energy = self.magnitude.double().square()
        if self.target is not None:
            energy = energy[:, -1:].expand_as(energy)
        weights: Tensor = (energy / energy.sum(0).clamp(min=torch.finfo(energy.dtype).tiny)).float()
        return weights
