"""The same responses read under the base prompt, the prompt, its paraphrases and every method, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches
from psr_lens.activations.massive_activations import CONTEXTS
from psr_lens.activations.paired_passes import row_counts
from psr_lens.activations.teacher_forced_pass import BatchReading, PassSteering, logits_budget, read_batch
from psr_lens.errors import InputError
from psr_lens.evaluation.acting_sites import ActingSite, SiteReading, positions, squares
from psr_lens.evaluation.methods import PARAPHRASE, Plan
from psr_lens.models import HookedModel, device_of
from psr_lens.prompts import Context, Span, Triplet, rephrase


def squared_distances(one: BatchReading, other: BatchReading, names: Sequence[str]) -> Float[Tensor, "token layer"]:
    """‖one − other‖² of the tokens of a batch at each hook point, in double precision, on the CPU; one hook point at a time is held."""
    return torch.stack([squares(one.rows[name].float() - other.rows[name].float()) for name in names], dim=1).cpu()


@dataclass(frozen=True, eq=False)
class Batch:
    """Some triplets in every unsteered context; the rows are the tokens of the span, triplet after triplet."""

    indices: Sequence[int]
    """Index of each triplet among all of them."""
    triplets: Sequence[Triplet]
    """The triplets."""
    base: BatchReading
    """Read under the base prompt."""
    prompted: BatchReading
    """Read under the prompt with the instruction."""
    rephrased: tuple[BatchReading, ...]
    """Read under the prompt with each paraphrase of the instruction."""

    @property
    def unsteered(self) -> tuple[BatchReading, ...]:
        """The batch in every unsteered context, in the order of `SideBySide.contexts`."""
        return (self.base, self.prompted, *self.rephrased)


@dataclass(frozen=True, eq=False)
class SteeredBatch:
    """A batch read under the base prompt with one method in force."""

    label: str
    """Name of the method."""
    reading: BatchReading
    """The steered run."""
    sites: tuple[SiteReading, ...]
    """For each hook point where the method acts, what it added and what would have been right; none for an adapter."""

    def columns(self, name: str) -> Float[Tensor, "token site"]:
        """One field of the readings at all sites, side by side."""
        each = [getattr(site, name) for site in self.sites]
        tokens = len(next(iter(self.reading.rows.values())))
        return torch.stack(each, dim=1) if each else torch.empty(tokens, 0)


@dataclass(frozen=True, eq=False)
class SideBySide:
    """What to read of responses, and under which methods."""

    model: HookedModel
    """The model."""
    plans: Mapping[str, Plan]
    """The methods by name."""
    alphas: Mapping[str, float]
    """Strength of each method."""
    layers: Sequence[int]
    """Layers after which the residual stream is read."""
    span: Span
    """Which tokens are read."""
    paraphrases: Sequence[str] = ()
    """The instruction in other words."""
    logits: bool = False
    """Whether to read the logits that predict the response tokens, too."""

    @property
    def contexts(self) -> tuple[str, ...]:
        """Names of the unsteered contexts."""
        several = len(self.paraphrases) > 1
        return (*CONTEXTS, *(f"{PARAPHRASE} {number + 1}" if several else PARAPHRASE for number in range(len(self.paraphrases))))

    @property
    def residuals(self) -> list[str]:
        """Hook points of the residual stream, one for each of `layers`."""
        return [f"blocks.{layer}.hook_resid_post" for layer in self.layers]

    @cached_property
    def sites(self) -> dict[str, list[ActingSite]]:
        """The hook points at which each method acts, in the order of the layers."""
        device = device_of(self.model)
        return {label: ActingSite.all_of(plan, device) for label, plan in self.plans.items()}

    def batches(self, triplets: Sequence[Triplet], token_budget: int) -> Iterator[Batch]:
        """Read triplets in every unsteered context, batch by batch.

        Args:
            triplets: The triplets.
            token_budget: Most tokens in a batch, padding included; fewer if their logits would not fit in memory.

        Raises:
            InputError: the span is the question's too, and a paraphrase splits it into other tokens.
        """
        others = [rephrase(self.model, triplets, text) for text in self.paraphrases]
        if any(row_counts(other, self.span) != row_counts(triplets, self.span) for other in others):
            raise InputError("span", repr(self.span), "'R', since a paraphrase changes how the question is split into tokens")
        if self.logits:  # of base, prompt, paraphrases and one method at a time
            token_budget = logits_budget(self.model, token_budget, 3 + len(others))
        everywhere = list(dict.fromkeys([*self.residuals, *(site.name for at in self.sites.values() for site in at)]))

        def read(chosen: Sequence[Triplet], names: Sequence[str], context: Context) -> BatchReading:
            return read_batch(self.model, chosen, names, context, self.span, logits=self.logits)

        for indices in progress_bar(list(length_batches(triplets, token_budget)), desc="compare", unit="batch"):
            chosen = [triplets[index] for index in indices]
            yield Batch(
                indices,
                chosen,
                read(chosen, everywhere, "base"),
                read(chosen, everywhere, "prompted"),
                tuple(read([other[index] for index in indices], self.residuals, "prompted") for other in others),
            )

    def steered(self, batch: Batch) -> Iterator[SteeredBatch]:
        """Read a batch under each method in turn, so that only one steered run needs to be in memory."""
        position = positions(batch.triplets, self.span)
        for label, plan in self.plans.items():
            sites, alpha = self.sites[label], self.alphas[label]
            reading = read_batch(
                self.model,
                batch.triplets,
                self.residuals,
                "base",
                self.span,
                steered=PassSteering(plan, alpha, [site.name for site in sites]),
                logits=self.logits,
            )
            found = [site.read(reading.arriving[site.name], batch.prompted.rows[site.name], position, alpha) for site in sites]
            yield SteeredBatch(label, reading, tuple(found))
