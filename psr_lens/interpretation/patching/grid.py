"""What a patching experiment gives: a share of the effect for every layer and token, or head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.errors import InputError
from psr_lens.prompts import TokenTable

Cells = Literal["token", "all"]
"""`token`: each token of the span is patched by itself; `all`: all tokens of the span at once."""

Measured = Literal["recovered", "lost"]
"""`recovered`: how much of the effect one cell brings into the unsteered run; `lost`: how much leaves the full run with it."""


@dataclass(frozen=True)
class PatchGrid:
    """How much of an effect goes through each cell.

    The effect is KL(full ‖ base), of the next-token distributions on the response, summed over its positions. `recovered`, of cells put
    into the base run, is (KL(full ‖ base) − KL(full ‖ cell)) / KL(full ‖ base): 0 is the base run, 1 the full one. `lost`, of cells taken
    out of a run, is (KL(full ‖ cell) − KL(full ‖ run)) / KL(full ‖ base): 0 is no loss, 1 the whole effect. Cells do not sum to 1: one may
    need another, or stand in for it.
    """

    instruction: str
    """The instruction of the first triplet."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    what: str
    """What a cell is: the kind of hook point, or `replacement`."""
    measured: Measured
    """Whether cells were put into the base run, or taken out of the full one."""
    reference: str
    """What "full" is: `prompt`, or `replacement`."""
    cells: Cells
    """Whether tokens were patched one by one."""
    tokens: TokenTable
    """The tokens of the span, and what each row is where they were patched one by one; else a row is a triplet."""
    layers: tuple[int, ...]
    """The layers of the columns."""
    values: Float[Tensor, "row layer head"]
    """Share of the effect. `head` is 1 long except at `z`. NaN where it cannot be said: a response's last token, which predicts nothing
    more of it, and responses on which there is no effect."""
    effect: Float[Tensor, " triplet"]
    """KL(full ‖ base) of each response, in nats."""

    def of(self, triplet: int) -> Float[Tensor, "token layer head"]:
        """The cells of one response.

        Raises:
            InputError: there is no such response.
        """
        if not 0 <= triplet < len(self.effect):
            raise InputError("triplet", triplet, f"a number from 0 to {len(self.effect) - 1}")
        return self.values[self.tokens.rows(triplet)] if self.cells == "token" else self.values[triplet : triplet + 1]

    def mean(self) -> Float[Tensor, "layer head"]:
        """The mean over responses, of the sum over the tokens of each where they were patched one by one."""
        if self.cells == "all":
            return self.values.nanmean(0)
        sums = [self.of(triplet).nansum(0) for triplet in range(len(self.effect)) if not self.of(triplet).isnan().all()]
        return torch.stack(sums).mean(0) if sums else torch.full_like(self.values[0], torch.nan)

    def by_position(self) -> tuple[Int[Tensor, " position"], Float[Tensor, "position layer head"]]:
        """Places in the response, as in `TokenTable.position`, and the mean over all responses that have such a place.

        Raises:
            InputError: tokens were not patched one by one.
        """
        if self.cells != "token":
            raise InputError("cells", repr(self.cells), "'token': a grid of tokens patched one by one")
        places = self.tokens.position.unique()
        return places, torch.stack([self.values[self.tokens.position == place].nanmean(0) for place in places])


def check_cells(cells: str, token_budget: int) -> None:
    """Refuse what no grid can be made of.

    Raises:
        InputError: `cells` is neither `token` nor `all`, or there is no room for tokens.
    """
    if cells not in get_args(Cells):
        raise InputError("cells", repr(cells), "'token' or 'all'")
    if token_budget < 1:
        raise InputError("token_budget", token_budget, "at least 1")
