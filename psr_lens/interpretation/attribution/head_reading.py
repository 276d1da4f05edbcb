"""What the heads of one layer read in both contexts, and the exact split of the difference.

With patterns A and values V of the base context, A' and V' of the prompted one, a head's output at a response token is z = A·V, and

    z' − z =  A'·V' over the tokens that only the prompted context has        (instruction)
           −  A·V   over the tokens that only the base prompt has           (removed)
           + (A' − A)·(V + V')/2  over the tokens that both have            (dilution)
           + (A + A')/2·(V' − V)  over the tokens that both have            (inputs)

The last two lines are the product rule for finite differences. Each factor could be evaluated in either context (A' − A at V and V' − V
at A', or the reverse). The mean of the two orders is the Shapley value of a two-player game; it treats both contexts alike, and the parts
still sum exactly.

The base context has no counterpart of the instruction's tokens, so the first line is not split further. Since a token's attention sums to
1, attention to the instruction is missing elsewhere: that is the dilution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens.activations.attention_patterns import align_keys, key_positions
from psr_lens.activations.batches import ContextBatch
from psr_lens.errors import ModelError
from psr_lens.interpretation.attribution.head_output import HeadOutput
from psr_lens.prompts import Triplet


@dataclass(frozen=True, eq=False)
class Keys:
    """Which keys of both contexts are the same token; the batch holds the base sequences first, then the prompted ones."""

    counterpart: Int[Tensor, "triplet key"]
    """For each key of the base context, the position of the same token in the prompted one; −1 if there is none, and on padding."""
    is_instruction: Bool[Tensor, "triplet key"]
    """Which keys only the prompted context has."""
    instruction: Int[Tensor, "triplet source"]
    """Positions of those keys; −1 past the end of a shorter instruction."""
    queries: Int[Tensor, "sequence query"]
    """Positions of the span's tokens in every sequence of the batch; 0 past the end of a shorter span."""
    is_query: Bool[Tensor, "triplet query"]
    """Which of those are real tokens of the span."""

    @classmethod
    def of(cls, triplets: Sequence[Triplet], both: ContextBatch) -> Keys:
        """Align the keys of a batch with both contexts side by side."""
        count, width, device = len(triplets), both.tokens.shape[1], both.tokens.device
        alignments = [align_keys(triplet) for triplet in triplets]
        counterpart, instruction = key_positions(alignments, width, max(len(each.instruction) for each in alignments))
        is_instruction = torch.zeros(count, width + 1, dtype=torch.bool)
        is_instruction.scatter_(1, torch.where(instruction < 0, width, instruction), value=True)
        lengths = both.span.sum(1)
        offsets = torch.arange(int(lengths.max()), device=device)
        is_query = offsets < lengths[:, None]
        queries = torch.where(is_query, both.start[:, None] + offsets, 0)
        return cls(counterpart.to(device), is_instruction[:, :width].to(device), instruction.to(device), queries, is_query[:count])


@dataclass(frozen=True, eq=False)
class HeadParts:
    """What the heads of one layer read at the tokens of the span, before W_O; rows are tokens, triplet after triplet."""

    base: Float[Tensor, "token head d_head"]
    """z, in the base context."""
    prompted: Float[Tensor, "token head d_head"]
    """z', in the prompted context."""
    parts: Float[Tensor, "part token head d_head"]
    """z' − z in four parts: `instruction`, `removed`, `dilution`, `inputs`."""
    attention: Float[Tensor, "triplet head query source"]
    """Attention A' to the instruction's tokens."""
    values: Float[Tensor, "triplet head source d_head"]
    """Values V' of the instruction's tokens."""


def read_heads(
    pattern: Float[Tensor, "sequence head query key"], values: Float[Tensor, "sequence key kv_head d_head"], keys: Keys
) -> HeadParts:
    """Split what changed between the two contexts for all heads of a layer.

    Raises:
        ModelError: the model does not have one value vector per token and head.
    """
    count = len(keys.is_query)
    if values.ndim != 4 or pattern.shape[1] % values.shape[2]:
        raise ModelError(f"model: got a `hook_v` of shape {tuple(values.shape)}, expected one vector per token and (shared) head.")
    # Heads that share values (grouped-query attention) each get their own copy.
    v = values.float().transpose(1, 2).repeat_interleave(pattern.shape[1] // values.shape[2], dim=1)
    a = pattern.gather(2, keys.queries[:, None, :, None].expand(-1, pattern.shape[1], -1, pattern.shape[3])).float()
    (a, prompted_a), (v, prompted_v) = a.split(count), v.split(count)
    has = (keys.counterpart >= 0)[:, None, None]
    at = keys.counterpart.clamp(min=0)[:, None]
    same_a = prompted_a.gather(3, at[:, :, None].expand_as(a)) * has
    same_v = prompted_v.gather(2, at[..., None].expand_as(v))
    shared_a = a * has
    instruction_a = prompted_a * keys.is_instruction[:, None, None]
    parts = [
        instruction_a @ prompted_v,
        (shared_a - a) @ v,
        (same_a - shared_a) @ (v + same_v) / 2,
        (shared_a + same_a) @ (same_v - v) / 2,
    ]
    found = keys.instruction.clamp(min=0)[:, None]
    attention = instruction_a.gather(3, found[:, :, None].expand(-1, *a.shape[1:3], -1)) * (keys.instruction >= 0)[:, None, None]
    sources = prompted_v.gather(2, found[..., None].expand(-1, v.shape[1], -1, v.shape[3]))

    def rows(padded: Tensor) -> Tensor:
        return padded.transpose(1, 2)[keys.is_query]

    return HeadParts(rows(a @ v), rows(prompted_a @ prompted_v), torch.stack([rows(part) for part in parts]), attention, sources)


@dataclass(frozen=True, eq=False)
class LayerParts:
    """The parts of Δ after one layer, at the tokens of the span; they sum to Δ."""

    heads: Float[Tensor, "part token head d_head"]
    """What each head adds, before W_O, in the order of `PARTS`."""
    mlp: Float[Tensor, "token d_model"]
    """The difference of the MLP's output."""
    direct: Float[Tensor, "token d_model"]
    """The difference of the residual stream before the layer."""
    output: HeadOutput
    """The map from heads to the residual stream."""

    def total(self) -> Float[Tensor, "token d_model"]:
        """The sum of all parts."""
        return self.direct + self.mlp + self.output.summed(self.heads.sum(0))

    def lengths(self) -> dict[str, Tensor]:
        """Norm of each part; `heads` is `[token, head, part]`, the others `[token]`."""
        # ‖zW‖² = z·(WWᵀ)·z needs no vector of length d_model for each head and part.
        gram = self.output.weights @ self.output.weights.transpose(1, 2)
        squared = torch.einsum("pthd,hde,pthe->thp", self.heads, gram, self.heads)
        return {"heads": squared.clamp(min=0).sqrt(), "mlp": self.mlp.norm(dim=-1), "direct": self.direct.norm(dim=-1)}

    def along(self, direction: Float[Tensor, "token d_model"]) -> dict[str, Tensor]:
        """Dot product of each part with a direction per token; shapes as in `lengths`."""
        heads = torch.einsum("pthd,thd->thp", self.heads, self.output.before(direction))
        return {"heads": heads, "mlp": (self.mlp * direction).sum(-1), "direct": (self.direct * direction).sum(-1)}


def with_norm(
    reading: HeadParts, output: HeadOutput, base_out: Float[Tensor, "token d_model"], prompted_out: Float[Tensor, "token d_model"]
) -> tuple[Float[Tensor, "part token head d_head"], Float[Tensor, " token"]]:
    """The parts as they enter the residual stream, plus a fifth for the norm after the attention, and the scale of the other four.

    With s the factor that the norm applies to a token, s'·u' − s·u = (s + s')/2·(u' − u) + (s' − s)·(u + u')/2, again the symmetric
    product rule. The first term scales the four parts; the second is the fifth part, which is 0 without a norm.
    """
    before, after = output.scale(reading.base, base_out), output.scale(reading.prompted, prompted_out)
    mean, change = (before + after) / 2, after - before
    norm = change[:, None, None] * (reading.base + reading.prompted) / 2
    return torch.cat([reading.parts * mean[:, None, None], norm[None]]), mean
