"""What is kept while layers are split: numbers per token, and sums per triplet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.attention_patterns import align_keys
from psr_lens.activations.paired_passes import Rows, Take
from psr_lens.errors import ModelError
from psr_lens.interpretation.attribution.head_output import TOLERANCE
from psr_lens.interpretation.attribution.head_reading import Keys
from psr_lens.interpretation.attribution.result import Sources, Split
from psr_lens.interpretation.attribution.split_by_layer import SplitLayer
from psr_lens.models import HookedModel, dtype_of, tokenizer_of
from psr_lens.prompts import Span, Triplet
from psr_lens.prompts.token_text import token_strings


class TokenSums:
    """Norms, shares and projections of all parts per token, on the CPU."""

    def __init__(self, triplets: Sequence[Triplet], span: Span, layers: Sequence[int], directions: Mapping[int, Tensor]) -> None:
        """Allocate space for some layers, and for unit directions to project onto."""
        self._rows, self._layers, self._directions = Rows(triplets, span), list(layers), directions
        self._ranks = max(map(len, directions.values()), default=0)
        self._error = torch.zeros(3, len(layers), dtype=torch.double)

    def of(self, indices: Sequence[int]) -> Take:
        """A function that stores the rows of a batch with these triplets."""
        return self._rows.of(indices)

    def add(self, take: Take, split: SplitLayer, toward: Float[Tensor, "token d_model"], basis_layer: int) -> None:
        """Add a layer: shares of `toward`, and projections onto the directions of `basis_layer`."""
        column, parts, energy = self._layers.index(split.layer), split.parts, toward.square().sum(-1, keepdim=True)
        left = parts.total() - split.delta
        for row, square in enumerate((left, split.delta)):
            self._error[row, column] += float(square.double().square().sum())
        self._error[2, column] += float(split.size.double().square().sum())
        along = torch.where(energy > 0, toward / energy.clamp(min=torch.finfo(energy.dtype).tiny), 0)
        take(f"{split.layer}/magnitude", split.delta.norm(dim=-1))
        named = {"norm": parts.lengths(), "share": parts.along(along)}
        basis = self._directions.get(basis_layer, toward.new_empty(0, toward.shape[1]))
        for rank in range(self._ranks):
            direction = basis[rank] if rank < len(basis) else torch.full_like(toward[0], torch.nan)
            named[f"along {rank}"] = parts.along(direction.expand_as(toward))
        for name, kinds in named.items():
            for kind, rows in kinds.items():
                take(f"{split.layer}/{name}/{kind}", rows)

    def magnitude(self) -> Float[Tensor, "token layer"]:
        """‖Δ‖ after each layer."""
        return torch.stack([self._rows.tensors[f"{layer}/magnitude"] for layer in self._layers], dim=1)

    def split(self, name: str, *, lowest_only: bool = False) -> Split:
        """`norm`, `share` or `along n`; with `lowest_only`, the input from below counts in the first column only."""
        heads, mlp, direct = (
            torch.stack([self._rows.tensors.pop(f"{layer}/{name}/{kind}") for layer in self._layers], dim=1)
            for kind in ("heads", "mlp", "direct")
        )
        if lowest_only:
            direct[:, 1:] = 0
        return Split(heads, mlp, direct)

    def projections(self, *, lowest_only: bool) -> tuple[Split, ...]:
        """Projections onto the first direction of each layer, onto the second, and so on."""
        return tuple(self.split(f"along {rank}", lowest_only=lowest_only) for rank in range(self._ranks))

    def remainder(self, model: HookedModel) -> Float[Tensor, " layer"]:
        """‖sum of the parts − Δ‖ / ‖Δ‖ at each layer.

        Raises:
            ModelError: it is larger than rounding errors.
        """
        error, delta, size = self._error.sqrt()
        rounding = 32 * torch.finfo(dtype_of(model)).eps * size
        for column in (error > TOLERANCE * delta + rounding).nonzero().flatten().tolist():
            raise ModelError(
                f"model: attention and MLP do not sum to the change of the residual stream at layer {self._layers[column]} (relative "
                f"error {float(error[column] / delta[column]):.2g}). This architecture scales or adds something in between, which "
                "attribution does not support; `patching` does."
            )
        found: Tensor = (error / delta.clamp(min=torch.finfo(delta.dtype).tiny)).float()
        return found


class SourceSums:
    """What heads read from each token of the instruction, summed over each triplet's span."""

    def __init__(self, triplets: Sequence[Triplet], layers: Sequence[int], heads: int) -> None:
        """Allocate space."""
        self._layers, self._triplets = list(layers), triplets
        self._alignments = [align_keys(triplet).instruction for triplet in triplets]
        widest = max(map(len, self._alignments))
        self._share = torch.full((len(triplets), len(layers), heads, widest), torch.nan, dtype=torch.float32)
        self._attention = self._share.clone()

    def add(self, indices: Sequence[int], keys: Keys, split: SplitLayer, toward: Float[Tensor, "token d_model"]) -> None:
        """Add a layer, as shares of `toward`."""
        column, attention, width = self._layers.index(split.layer), split.reading.attention, split.reading.values.shape[2]
        seen = split.parts.output.before(toward * split.scale[:, None])
        padded = seen.new_zeros(*keys.is_query.shape, *seen.shape[1:])
        padded[keys.is_query] = seen
        products = padded.transpose(1, 2) @ split.reading.values.transpose(2, 3)
        energy = toward.square().sum(-1)
        by_triplet = energy.new_zeros(*keys.is_query.shape)
        by_triplet[keys.is_query] = energy
        whole = by_triplet.sum(1)[:, None, None]
        real = keys.is_query[:, None, :, None]
        share = (products * attention).sum(2) / whole.clamp(min=torch.finfo(whole.dtype).tiny)
        mean = (attention * real).sum(2) / keys.is_query.sum(1)[:, None, None]
        absent = (keys.instruction < 0)[:, None]
        self._share[indices, column, :, :width] = share.masked_fill(absent, torch.nan).cpu()
        self._attention[indices, column, :, :width] = mean.masked_fill(absent, torch.nan).cpu()

    def result(self, model: HookedModel) -> Sources:
        """Shares and attention, with the tokens as strings."""
        tokenizer = tokenizer_of(model)
        pairs = [triplet.pair for triplet in self._triplets]
        strings = (
            token_strings(tokenizer, [(*pair.prompted_ids, *triplet.response_ids)[at] for at in positions])
            for pair, triplet, positions in zip(pairs, self._triplets, self._alignments, strict=True)
        )
        return Sources(self._share, self._attention, tuple(strings))
