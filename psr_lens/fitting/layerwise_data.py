"""What a layerwise fit works on, whether its activations wait in memory or in files: batches of both contexts, rows and strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.batches import ContextBatch, context_batch, length_batches
from psr_lens.errors import FitError
from psr_lens.fitting.config import Layerwise
from psr_lens.fitting.regression import fit_site
from psr_lens.models import HookedModel, device_of
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site

CPU_TOKENS: Final = 1_024
"""Most tokens of a batch on a CPU, which gains nothing by larger ones, and loses by their padding."""

GoOn = Literal["steered by the sites", "with the prompt's"]
"""What the base context goes on with after a layer: what arrived plus what the site adds, or the prompted activations."""


@dataclass(frozen=True)
class LayerwiseData:
    """All triplets in batches; a batch is the same triplets in either context, and its spans have the same tokens."""

    base: list[ContextBatch]
    """Batches of the base context."""
    prompted: list[ContextBatch]
    """The same triplets in the prompted context."""
    alpha: list[Float[Tensor, " _"]]
    """By batch, the trait's score of every token's triplet."""

    @classmethod
    def of(cls, model: HookedModel, triplets: Sequence[Triplet], config: Layerwise) -> LayerwiseData:
        """Put the triplets into batches within the token budget."""
        device = device_of(model)
        budget = min(config.token_budget, CPU_TOKENS) if device.type == "cpu" else config.token_budget
        groups = [[triplets[index] for index in indices] for indices in length_batches(triplets, budget)]
        base, prompted = (
            [context_batch(group, context, config.span, device) for group in groups] for context in ("base", "prompted")
        )
        return cls(base, prompted, [_per_token(batch, group) for batch, group in zip(base, groups, strict=True)])

    @property
    def tokens(self) -> int:
        """Number of rows: tokens of all spans."""
        return sum(map(len, self.alpha))


def _per_token(batch: ContextBatch, triplets: Sequence[Triplet]) -> Float[Tensor, " token"]:
    scores = torch.tensor([triplet.trait / 100 for triplet in triplets], device=batch.rows.device)
    return scores[batch.rows // batch.tokens.shape[1]]


def last_layer(names: Sequence[str]) -> int:
    """The layer of the last of some hook points."""
    return max(layer for name in names if (layer := layer_of(name)) is not None)


def halts(names: Sequence[str], go_on: GoOn) -> list[str]:
    """Where the base context is read or changed: at the sites, and at every block's output that is replaced before the last site."""
    if go_on == "steered by the sites":
        return list(names)
    outputs = [f"blocks.{layer}.hook_resid_post" for layer in range(last_layer(names))]
    # Within a block its output fires last.
    return sorted({*names, *outputs}, key=lambda name: (layer_of(name) or 0, name.endswith("hook_resid_post")))


def fitted_site(
    name: str,
    inputs: Float[Tensor, "token *head width"],
    targets: Float[Tensor, "token *head width"],
    alpha: Float[Tensor, " token"],
    config: Layerwise,
    device: torch.device,
) -> Site:
    """The site of one hook point.

    Raises:
        FitError: an activation or the site is not finite; names the hook point.
    """
    try:
        site = fit_site(inputs, targets, alpha, config, device)
    except FitError as error:
        raise FitError(f"{config.solver}: at {name} {error}") from error
    if not all(bool(part.isfinite().all()) for part in (site.directions, site.weights, site.bias)):
        raise FitError(f"{config.solver}: at {name} the regression has no finite solution. Raise `ridge`.")
    return site


def with_rows(
    activation: Float[Tensor, "batch position *head width"], batch: ContextBatch, rows: Float[Tensor, "token *head width"]
) -> Float[Tensor, "batch position *head width"]:
    """The activation with other rows in the spans, in its own type."""
    return activation.flatten(0, 1).index_copy(0, batch.rows.to(activation.device), rows.to(activation)).view_as(activation)


def steered_rows(
    rows: Float[Tensor, "token *head width"], site: Site, alpha: Float[Tensor, " token"]
) -> Float[Tensor, "token *head width"]:
    """The rows plus what a site adds to them."""
    precise = torch.promote_types(rows.dtype, torch.float32)
    added = site.to(rows.device, precise).intervention(rows.to(precise))
    return rows + (alpha.to(rows.device).view(-1, *[1] * (rows.ndim - 1)) * added).to(rows.dtype)


@dataclass
class Missing:
    """How much of the difference to the prompt is left after a site, added up over tokens."""

    left: float = 0.0
    """Σ |wanted − steered|²."""
    whole: float = 0.0
    """Σ |wanted − arrived|²."""

    def add(self, arrived: Tensor, steered: Tensor, wanted: Tensor) -> None:
        """Take in some rows."""
        self.left += float((wanted - steered).double().square().sum())
        self.whole += float((wanted - arrived).double().square().sum())

    def __str__(self) -> str:
        """The relative error."""
        return f"{(self.left / self.whole) ** 0.5 if self.whole else 0.0:.3f}"
