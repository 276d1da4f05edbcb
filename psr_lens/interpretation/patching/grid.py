"""The result of a patching experiment: a share of the effect for every layer and token, or head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted, is_whole
from psr_lens.errors import InputError
from psr_lens.prompts import TokenTable

Cells = Literal["token", "all"]
"""`token`: each token of the span is patched on its own; `all`: all tokens of the span at once."""

Measured = Literal["recovered", "lost"]
"""`recovered`: how much of the effect a cell brings into the base run; `lost`: how much of it a cell takes out of the full run."""

Reference = Literal["replacement", "prompt"]
"""Whose effect the shares refer to."""


@dataclass(frozen=True, eq=False, repr=False)
class PatchGrid:
    """How much of an effect goes through each cell.

    The effect is KL(full ‖ base) of the next-token distributions of the response, summed over its positions. `recovered`, for cells put
    into the base run, is (KL(full ‖ base) − KL(full ‖ cell)) / KL(full ‖ base): 0 is the base run, 1 the full run. `lost`, for cells
    taken out of a run, is (KL(full ‖ cell) − KL(full ‖ run)) / KL(full ‖ base): 0 is no loss, 1 the whole effect. Cells do not sum to 1,
    since one may depend on another or duplicate it.

    Example:
        >>> grid = psr.patching.patch(model, triplets[:2], layers=[2, 5], cells="all")
        >>> grid.values.shape, grid.layers
        (torch.Size([2, 2, 1]), (2, 5))
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    what: str
    """What is patched: a kind of hook point, or `replacement`."""
    measured: Measured
    """Whether cells were put into the base run or taken out of the full one."""
    reference: Reference
    """The full run: that of the `prompt`, or that of the `replacement`."""
    cells: Cells
    """Whether tokens were patched one by one."""
    tokens: TokenTable
    """The tokens of the span. Each is a row if tokens were patched one by one; otherwise a row is a triplet."""
    layers: tuple[int, ...]
    """The layer of each column."""
    values: Float[Tensor, "row layer head"]
    """Share of the effect. The last dimension is 1 except at `z`. NaN where undefined: at a response's last token, which predicts
    nothing, and for responses without an effect."""
    effect: Float[Tensor, " triplet"]
    """KL(full ‖ base) of each response, in nats."""

    def __repr__(self) -> str:
        """What was patched, and the size of the grid."""
        rows, layers, heads = self.values.shape
        row = "token" if self.cells == "token" else "response"
        size = f"{counted(rows, row)} × {counted(layers, 'layer')}" + (f" × {counted(heads, 'head')}" if heads > 1 else "")
        return f"PatchGrid({self.what}: share of the {self.reference}'s effect {self.measured}, {size})"

    def _repr_html_(self) -> str:
        means = self.mean().tolist()
        heads = ("share",) if len(means[0]) == 1 else tuple(f"head {head}" for head in range(len(means[0])))
        rows = [(layer, *values) for layer, values in zip(self.layers, means, strict=True)]
        return table(("layer", *heads), rows, f"{self!r}: mean over responses")

    def of(self, triplet: int) -> Float[Tensor, "token layer head"]:
        """The cells of one response.

        Raises:
            InputError: there is no such response.

        Example:
            >>> psr.patching.patch(model, triplets[:1], layers=[0, 5], cells="all").of(0).shape
            torch.Size([1, 2, 1])
        """
        if not is_whole(triplet) or not 0 <= triplet < len(self.effect):
            raise InputError("triplet", repr(triplet), f"a number from 0 to {len(self.effect) - 1}")
        return self.values[self.tokens.rows(triplet)] if self.cells == "token" else self.values[triplet : triplet + 1]

    def mean(self) -> Float[Tensor, "layer head"]:
        """The mean over responses; if tokens were patched one by one, of each response's sum over tokens.

        Example:
            >>> grid = psr.patching.patch(model, triplets[:2], layers=-1, cells="all")
            >>> round(float(grid.mean()), 2)
            1.0
        """
        if self.cells == "all":
            return self.values.nanmean(0)
        sums = [self.of(triplet).nansum(0) for triplet in range(len(self.effect)) if not self.of(triplet).isnan().all()]
        return torch.stack(sums).mean(0) if sums else torch.full_like(self.values[0], torch.nan)

    def by_position(self) -> tuple[Int[Tensor, " position"], Float[Tensor, "position layer head"]]:
        """Positions in the response, as in `TokenTable.position`, and the mean at each over the responses that reach it.

        Raises:
            InputError: tokens were not patched one by one.

        Example:
            >>> positions, means = psr.patching.patch(model, triplets[:2], layers=5).by_position()
            >>> positions[0].item(), means.shape[1:]
            (-1, torch.Size([1, 1]))
        """
        if self.cells != "token":
            raise InputError("cells", repr(self.cells), "'token': a grid of tokens patched one by one")
        positions = self.tokens.position.unique()
        return positions, torch.stack([self.values[self.tokens.position == position].nanmean(0) for position in positions])
