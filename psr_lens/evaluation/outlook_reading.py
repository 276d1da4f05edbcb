"""The residual stream after every layer, a few layers at a time, for `outlook`; massive tokens are found on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens.activations.finite import check_finite
from psr_lens.activations.massive_activations import CONTEXTS
from psr_lens.activations.massive_finder import MassiveFinder
from psr_lens.activations.paired_passes import Difference, PairedReading, Rows, Take
from psr_lens.models import HookedModel, dtype_of, frozen
from psr_lens.prompts import Span, Triplet

_AT_ONCE: Final = 2**30
"""Most bytes of activations that are held at once; more layers than fit are read in several passes."""

Pair = tuple[Float[Tensor, "token width"], Float[Tensor, "token width"]]
"""What a probe reads, and the difference that it should call for."""


@dataclass(eq=False)
class LayerReader:
    """Reads the residual stream after every layer, some layers at a time."""

    model: HookedModel
    triplets: Sequence[Triplet]
    rephrased: Sequence[Triplet] | None
    span: Span
    token_budget: int
    massive: Bool[Tensor, " token"] = field(init=False)
    """Which tokens are massive after any layer in the base or the prompted context; known from the first layer that was read on."""

    def layers(self, tokens: int) -> Iterator[tuple[Pair, Pair, Tensor | None]]:
        """Base activations and Δ; what reaches the layer's end and what is missing there; and the paraphrase's Δ, layer by layer."""
        count, width = int(self.model.cfg.n_layers), int(self.model.cfg.d_model)
        size = max(1, _AT_ONCE // (4 * 5 * tokens * width))
        every = [f"blocks.{layer}.hook_resid_post" for layer in range(count)]
        for first in range(0, count, size):
            names = every[first : first + size]
            # The first pass looks at all layers for massive tokens, whichever of them it keeps.
            finder = MassiveFinder(count, len(CONTEXTS)) if first == 0 else None
            accumulated = self._rows(self.triplets, names, "accumulated", every if finder else names, finder)
            if finder is not None:
                self.massive = finder.finish().mask(tokens)
            local = self._rows(self.triplets, names, "local")
            other = None if self.rephrased is None else self._rows(self.rephrased, names, "accumulated")
            for name in names:
                yield accumulated.pop(name), local.pop(name), None if other is None else other.pop(name)[1]

    def _rows(
        self,
        triplets: Sequence[Triplet],
        names: Sequence[str],
        difference: Difference,
        seen: Sequence[str] = (),
        finder: MassiveFinder | None = None,
    ) -> dict[str, Pair]:
        """The rows of some hook points; a finder looks at those of all that are `seen`."""
        shapes = {name: (int(self.model.cfg.d_model),) for name in seen or names}
        reading = PairedReading(self.model, triplets, shapes, dtype_of(self.model), self.span, difference, self.token_budget)
        rows = Rows(triplets, self.span)
        with reading.bar() as bar, torch.no_grad(), frozen(self.model):
            for batch in reading.batches(range(len(triplets))):
                take = rows.of(batch)

                def both(name: str, before: Tensor, after: Tensor, take: Take = take) -> None:
                    check_finite({name: before})
                    check_finite({name: after})
                    if finder is not None:
                        for context, activations in enumerate((before, after)):
                            finder.look(seen.index(name), context, activations)
                    if name not in names:
                        return
                    take(f"{name} before", before.float())
                    take(f"{name} after", after.float() - before.float())

                reading.read_both(batch, both)
                if finder is not None:
                    finder.add(rows.at(batch))
                bar.update(sum(rows.counts[index] for index in batch))
        return {name: (rows.tensors[f"{name} before"], rows.tensors[f"{name} after"]) for name in names}
