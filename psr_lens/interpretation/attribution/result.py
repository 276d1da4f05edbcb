"""The result of `attribute`: norms and shares of the parts of Δ, and the heads that read the instruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted, is_whole
from psr_lens.activations.paired_passes import Difference
from psr_lens.errors import InputError
from psr_lens.prompts import Span, TokenTable

Part = Literal["instruction", "removed", "dilution", "inputs", "norm"]
"""Why a head's output differs between the contexts. `instruction`: it reads tokens that only the prompted context has; `removed`: it no
longer reads tokens that only the base prompt has; `dilution`: its attention to the tokens of both prompts changes; `inputs`: their values
change; `norm`: a norm after the attention (Gemma-2) scales the sum over heads differently."""

PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""All parts of the change of a head's output, in the order of the last dimension of `Split.heads`."""

Measure = Literal["share", "norm"]
"""`share`: signed share of Δ; `norm`: length, in the activation's units."""


class HeadReading(NamedTuple):
    """One head, and the size of one part of it."""

    layer: int
    """Its layer."""
    head: int
    """Its index in the layer."""
    value: float
    """The mean over tokens by which heads were ordered: a share of Δ, or a length in the activation's units."""

    def __repr__(self) -> str:
        """The head and its value, `HeadReading(L3H1, 0.25)`."""
        return f"HeadReading({self}, {self.value:.3g})"

    def __str__(self) -> str:
        """The usual notation, `L3H1`."""
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One number for each part of Δ at each token."""

    heads: Float[Tensor, "token layer head part"]
    """The parts of each head, in the order of `PARTS`."""
    mlp: Float[Tensor, "token layer"]
    """The change of each MLP's output."""
    direct: Float[Tensor, "token layer"]
    """The input from below: the difference of the residual stream before each layer. With a `target`, the difference of the embeddings
    in the first column and 0 in all others, since the layers below are split too."""

    def total(self) -> Float[Tensor, "token layer"]:
        """The sum of all parts at each layer."""
        summed: Tensor = self.heads.sum((2, 3)) + self.mlp + self.direct
        return summed

    def __repr__(self) -> str:
        """Tokens, layers, heads and parts, on one line."""
        tokens, layers, heads, parts = self.heads.shape
        size = f"{counted(tokens, 'token')} × {counted(layers, 'layer')}"
        return f"Split({size}; {counted(heads, 'head')} in {counted(parts, 'part')} each, MLP, direct)"


@dataclass(frozen=True, eq=False)
class Sources:
    """Which tokens of the instruction each head reads, by triplet; NaN past the end of a shorter instruction."""

    share: Float[Tensor, "triplet layer head source"]
    """Share of Δ from each source token: Σ⟨part, Δ⟩ / Σ‖Δ‖² over the tokens of the span. The sum over source tokens is the
    `instruction` part."""
    attention: Float[Tensor, "triplet layer head source"]
    """Mean attention to each source token, over the tokens of the span."""
    strings: tuple[tuple[str, ...], ...]
    """The source tokens of each triplet: all tokens that only its prompted context has, including those of the chat template."""


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """Δ split into the contributions of each head and each MLP; `attribute` returns it.

    Example:
        >>> psr.attribute(model, triplets[:1], layers=[0, 1])
        Attribution('talk like a pirate', accumulated Δ: ... tokens × 2 layers × 4 heads)
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    span: Span
    """The tokens that were read."""
    difference: Difference
    """The difference that was split."""
    target: int | None
    """The layer against whose Δ all parts up to it are measured; None if each layer is measured against its own Δ."""
    tokens: TokenTable
    """The token of each row."""
    layers: tuple[int, ...]
    """The layer of each column."""
    magnitude: Float[Tensor, "token layer"]
    """‖Δ‖ after each layer."""
    norm: Split
    """Length of each part, in the activation's units."""
    share: Split
    """⟨part, Δ⟩ / ‖Δ‖² of each part. The shares of a token sum to 1 at every layer, or over all layers with a `target`. A part that
    works against Δ has a negative share. All are 0 where Δ is 0 or mere rounding."""
    remainder: Float[Tensor, " layer"]
    """‖sum of the parts − Δ‖ / ‖Δ‖ over all tokens at each layer, a check of exactness: rounding only. 0 where Δ is 0."""
    projections: tuple[Split, ...] = ()
    """Coordinates of the parts along each unit direction of `project`, in the activation's units; NaN at layers with fewer
    directions."""
    sources: Sources | None = None
    """What heads read by source token; None without `by_source=True`."""

    @checks_arguments
    def reading(
        self, part: Part = "instruction", measure: Measure = "share", token: int | None = None
    ) -> Float[Tensor, "layer head"]:
        """One part of every head; by default, what each head reads from the instruction.

        Args:
            part: One of `PARTS`.
            measure: `"share"` of Δ, or `"norm"`.
            token: A row of `tokens`. None averages over all tokens; shares are then weighted by ‖Δ‖², which gives shares of the total
                and keeps tokens that the instruction hardly changes from dominating.

        Raises:
            InputError: unknown part or measure, or a token out of range.

        Example:
            >>> psr.attribute(model, triplets[:4]).reading().shape
            torch.Size([6, 4])
        """
        if part not in PARTS:
            raise InputError("part", repr(part), f"one of {', '.join(PARTS)}")
        if measure not in get_args(Measure):
            raise InputError("measure", repr(measure), "'share' or 'norm'")
        values = (self.share if measure == "share" else self.norm).heads[..., PARTS.index(part)]
        if token is not None:
            self._check_token(token)
            return values[token]
        if measure == "norm":
            return values.mean(0)
        return torch.einsum("tlh,tl->lh", values, self._weights())

    @checks_arguments
    def by_layer(self, token: int | None = None) -> dict[str, Float[Tensor, " layer"]]:
        """Share of each part at each layer, summed over heads, and of `mlp` and `direct`; averaged over tokens as in `reading`.

        Raises:
            InputError: a token out of range.

        Example:
            >>> shares = psr.attribute(model, triplets[:4]).by_layer()
            >>> list(shares)
            ['instruction', 'removed', 'dilution', 'inputs', 'norm', 'mlp', 'direct']
        """
        if token is not None:
            self._check_token(token)
        weights = self._weights()
        named: dict[str, Tensor] = {part: self.share.heads[..., index].sum(-1) for index, part in enumerate(PARTS)}
        named |= {"mlp": self.share.mlp, "direct": self.share.direct}
        return {name: (share * weights).sum(0) if token is None else share[token] for name, share in named.items()}

    @checks_arguments
    def top_heads(self, count: int, part: Part = "instruction", measure: Measure = "share") -> tuple[HeadReading, ...]:
        """The heads with the most of one part, largest first.

        Without a `target`, each head is measured against Δ after its own layer. This finds early heads that read the instruction and
        whose output later layers amplify; on the embedded models, the trait is lost without these heads. With a `target`, all heads are
        measured against one Δ, which finds the heads that write to it directly.

        Raises:
            InputError: `count` is not from 1 to the number of heads, or unknown part or measure.

        Example:
            >>> heads = psr.attribute(model, triplets[:4]).top_heads(2)
            >>> str(heads[0])
            'L0H3'
        """
        values = self.reading(part, measure)
        if not is_whole(count) or not 1 <= count <= values.numel():
            raise InputError("count", repr(count), f"1 to {values.numel()}, the number of heads")
        order = values.flatten().argsort(descending=True, stable=True)[:count].tolist()
        width = values.shape[1]
        return tuple(HeadReading(self.layers[at // width], at % width, float(values.flatten()[at])) for at in order)

    def __repr__(self) -> str:
        """Tokens, layers, heads and what was split."""
        target = "" if self.target is None else f", target layer {self.target}"
        size = f"{counted(len(self.tokens), 'token')} × {counted(len(self.layers), 'layer')} × {counted(self.share.heads.shape[2], 'head')}"
        return f"Attribution({self.instruction!r}, {self.difference} Δ: {size}{target})"

    def _repr_html_(self) -> str:
        shares = self.by_layer()
        rows = [(layer, *(float(shares[name][column]) for name in shares)) for column, layer in enumerate(self.layers)]
        return table(("layer", *shares), rows, f"{self!r}: mean shares of Δ")

    def _check_token(self, token: int) -> None:
        if not -len(self.tokens) <= token < len(self.tokens):
            raise InputError("token", token, f"a row from 0 to {len(self.tokens) - 1}")

    def _weights(self) -> Float[Tensor, "token layer"]:
        """‖Δ‖² of each token as a share of the sum over tokens."""
        energy = self.magnitude.double().square()
        if self.target is not None:
            energy = energy[:, -1:].expand_as(energy)
        weights: Tensor = (energy / energy.sum(0).clamp(min=torch.finfo(energy.dtype).tiny)).float()
        return weights
