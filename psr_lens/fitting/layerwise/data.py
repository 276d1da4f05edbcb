"""What layerwise fits work on, in memory or in files: batches of both contexts, rows of activations, and strengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.batches import ContextBatch, context_batch, length_batches
from psr_lens.errors import FitError
from psr_lens.fitting.layerwise.regression import fit_site, solve_directions
from psr_lens.fitting.layerwise.token_weights import decisive
from psr_lens.fitting.settings.solvers import Layerwise
from psr_lens.models import HookedModel, device_of
from psr_lens.models.hook_points import layer_of
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site

CPU_TOKENS: Final = 1_024
"""Most tokens of a batch on a CPU: larger batches are no faster there, and have more padding."""

Downstream = Literal["steered", "prompted"]
"""What the base pass continues with after a layer: its own activations plus what the site adds, or the prompted activations."""


@dataclass(frozen=True, eq=False)
class LayerwiseData:
    """All triplets in batches. A batch holds the same triplets in both contexts, and so the same span tokens."""

    base: list[ContextBatch]
    """Batches in the base context."""
    prompted: list[ContextBatch]
    """The same batches in the prompted context."""
    alpha: list[Float[Tensor, " _"]]
    """By batch, the trait score of each token's triplet."""
    weights: list[Float[Tensor, " _"]]
    """By batch, the weight of each token's error, before massive activations are given less."""
    triplets: list[list[int]]
    """By batch, the indices of its triplets."""

    @classmethod
    def of(cls, model: HookedModel, triplets: Sequence[Triplet], config: Layerwise) -> LayerwiseData:
        """Put the triplets into batches within the token budget."""
        device = device_of(model)
        budget = min(config.token_budget, CPU_TOKENS) if device.type == "cpu" else config.token_budget
        batches = list(length_batches(triplets, budget))
        groups = [[triplets[index] for index in indices] for indices in batches]
        base, prompted = (
            [context_batch(group, context, config.span, device) for group in groups] for context in ("base", "prompted")
        )
        alpha = [_per_token(batch, group) for batch, group in zip(base, groups, strict=True)]
        if config.token_weights == "uniform":
            return cls(base, prompted, alpha, [torch.ones_like(each) for each in alpha], batches)
        found = decisive(model, triplets, config)
        weights = [torch.cat([found[index] for index in indices]).to(device) for indices in batches]
        return cls(base, prompted, alpha, weights, batches)

    @property
    def tokens(self) -> int:
        """Number of rows, the tokens of all spans."""
        return sum(map(len, self.alpha))


def _per_token(batch: ContextBatch, triplets: Sequence[Triplet]) -> Float[Tensor, " token"]:
    scores = torch.tensor([triplet.trait / 100 for triplet in triplets], device=batch.rows.device, dtype=torch.float32)
    return scores[batch.rows // batch.tokens.shape[1]]


def last_layer(names: Sequence[str]) -> int:
    """The highest layer of some hook points."""
    return max(layer for name in names if (layer := layer_of(name)) is not None)


def halts(names: Sequence[str], downstream: Downstream) -> list[str]:
    """Where the base pass is read or changed: at the sites, and at the output of every block before the last site if that is replaced."""
    if downstream == "steered":
        return list(names)
    outputs = [f"blocks.{layer}.hook_resid_post" for layer in range(last_layer(names))]
    # The output of a block fires last in it.
    return sorted({*names, *outputs}, key=lambda name: (layer_of(name) or 0, name.endswith("hook_resid_post")))


def fitted_site(
    name: str,
    inputs: Float[Tensor, "token *head width"],
    targets: Float[Tensor, "token *head width"],
    alpha: Float[Tensor, " token"],
    weights: Float[Tensor, " token"],
    config: Layerwise,
    device: torch.device,
    probes: Site | None = None,
) -> Site:
    """The site of one hook point; with `probes` only its directions are fitted.

    Raises:
        FitError: an activation or the site is not finite; names the hook point.
    """
    try:
        if probes is None:
            site = fit_site(inputs, targets, alpha, config, device, weights)
        else:
            site = solve_directions(probes, inputs, targets, alpha, config, device, weights)
    except FitError as error:
        raise FitError(f"{config.solver}: at {name} {error}") from error
    if not site.is_finite:
        raise FitError(f"{config.solver}: at {name} the regression has no finite solution. Raise `ridge`.")
    return site


def with_rows(
    activation: Float[Tensor, "batch position *head width"], batch: ContextBatch, rows: Float[Tensor, "token *head width"]
) -> Float[Tensor, "batch position *head width"]:
    """The activation with other rows on the spans, in its own dtype."""
    return activation.flatten(0, 1).index_copy(0, batch.rows.to(activation.device), rows.to(activation)).view_as(activation)


def steered_rows(
    rows: Float[Tensor, "token *head width"], site: Site, alpha: Float[Tensor, " token"]
) -> Float[Tensor, "token *head width"]:
    """The rows plus what a site adds to them."""
    precise = torch.promote_types(rows.dtype, torch.float32)
    added = site.to(rows.device, precise).intervention(rows.to(precise))
    return rows + (alpha.to(rows.device).view(-1, *[1] * (rows.ndim - 1)) * added).to(rows.dtype)


@dataclass
class RemainingError:
    """How much of the difference to the prompted activations is left after a site, summed over tokens."""

    left: float = 0.0
    """Σ |wanted − steered|²."""
    whole: float = 0.0
    """Σ |wanted − arrived|²."""

    def add(self, arrived: Tensor, steered: Tensor, wanted: Tensor) -> None:
        """Add some rows."""
        self.left += float((wanted - steered).double().square().sum())
        self.whole += float((wanted - arrived).double().square().sum())

    def __str__(self) -> str:
        """The relative error, as the progress bar shows it."""
        return f"{(self.left / self.whole) ** 0.5 if self.whole else 0.0:.3f}"
