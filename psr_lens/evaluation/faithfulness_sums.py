"""How close a method comes to the prompt, summed batch by batch into sums for each response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from psr_lens.activations.next_token import divergence
from psr_lens.activations.paired_passes import row_counts
from psr_lens.activations.teacher_forced_pass import BatchReading
from psr_lens.evaluation.acting_sites import ActingSite, SiteReading, squares
from psr_lens.evaluation.faithfulness_result import Closeness, SiteFaithfulness
from psr_lens.evaluation.side_by_side import Batch, squared_distances
from psr_lens.prompts import Span


class ClosenessSums:
    """Sums up a `Closeness` batch by batch; a response that is added several times counts several times."""

    def __init__(self, names: Sequence[str], span: Span, responses: int) -> None:
        """Start at zero, for the residual stream at some hook points."""
        self._names, self._span = names, span
        self._layered = np.zeros((2, responses, len(names)))
        self._single = np.zeros((3, responses))
        self._tokens: list[tuple[np.ndarray, ...]] = []

    def add(
        self,
        batch: Batch,
        rows: Int[Tensor, " token"],
        found: BatchReading,
        target: BatchReading,
        energy: Float[Tensor, "token layer"],
    ) -> None:
        """Add a batch, whose tokens have these rows.

        Args:
            batch: The batch.
            rows: The row of each of its tokens.
            found: The batch as the method has it.
            target: The batch as the prompt has it.
            energy: ‖Δ_acc‖² of the target, the same for all methods.
        """
        spanned = row_counts(batch.triplets, self._span)
        both = (squared_distances(found, target, self._names), energy)
        for kind, squared in enumerate(both):
            for column, each in enumerate(squared.unbind(1)):
                self._layered[kind, batch.indices, column] += by_response(each, spanned)
        norms = (squared.sqrt().float().numpy() for squared in both)
        self._tokens.append((rows.numpy(), np.repeat(batch.indices, spanned), *norms))
        predicted = [len(each.response_ids) for each in batch.triplets]
        if found.logits is not None and target.logits is not None:
            divergence, agreed = compare_logits(target.logits, found.logits)
            self._single[0, batch.indices] += by_response(divergence, predicted)
            self._single[1, batch.indices] += by_response(agreed, predicted)
            self._single[2, batch.indices] += predicted

    def finish(self, massive: Bool[Tensor, " token"]) -> Closeness:
        """The sums over everything that was added, given which tokens are massive after any layer."""
        rows, response, error, delta = (np.concatenate(each) for each in zip(*self._tokens, strict=True))
        ordinary = ~massive.numpy()[rows, None]
        without = np.zeros_like(self._layered)
        for kind, each in enumerate((error, delta)):
            np.add.at(without[kind], response, np.where(ordinary, np.square(each, dtype=float), 0))
        relative = np.divide(error, delta, out=np.full_like(error, np.nan), where=delta > 0)
        (summed, energy), (kl, agreed, predicted), (summed_without, energy_without) = self._layered, self._single, without
        return Closeness(summed, energy, kl, agreed, predicted, summed_without, energy_without, relative, response)


class SiteSums:
    """Sums up a `SiteFaithfulness` batch by batch."""

    def __init__(self, site: ActingSite, span: Span, responses: int) -> None:
        """Start at zero."""
        self._site, self._span = site, span
        self._responses = responses
        self._tokens: list[tuple[np.ndarray, ...]] = []

    def add(self, batch: Batch, rows: Int[Tensor, " token"], reading: SiteReading) -> None:
        """Add a batch, whose tokens have these rows: what was done at the hook point."""
        name = self._site.name
        delta = batch.prompted.rows[name].float() - batch.base.rows[name].float()
        energies = (squares(delta), self._site.within(delta), reading.missing, reading.within, reading.left)
        owner = np.repeat(batch.indices, row_counts(batch.triplets, self._span))
        numbers = (each.double().cpu().numpy() for each in (reading.coefficient, reading.projection, *energies))
        self._tokens.append((rows.numpy(), owner, reading.acting.cpu().numpy(), *numbers))

    def finish(self, massive: Bool[Tensor, " token"]) -> SiteFaithfulness:
        """The sums over everything that was added, given which tokens are massive after any layer."""
        rows, *others = (np.concatenate(each) for each in zip(*self._tokens, strict=True))
        order = np.argsort(rows)
        every = [each[order] for each in others]
        ordinary = ~massive.numpy()[rows[order]]
        return replace(self._summed(every), without_massive=self._summed([each[ordinary] for each in every]))

    def _summed(self, tokens: Sequence[np.ndarray]) -> SiteFaithfulness:
        owner, acting, coefficient, projection, *energies = tokens
        delta, delta_within, missing, within, left = (np.bincount(owner, energy, self._responses) for energy in energies)
        return SiteFaithfulness(
            self._site.name,
            self._site.layer,
            self._site.rank,
            owner[acting],
            coefficient[acting],
            projection[acting],
            delta,
            delta_within,
            missing,
            within,
            left,
        )


def by_response(values: Float[Tensor, " token"], counts: Sequence[int]) -> Float[np.ndarray, " response"]:
    """Sums over the tokens of each response; tokens come response after response."""
    return np.add.reduceat(values.double().cpu().numpy(), np.cumsum([0, *counts[:-1]]))


def compare_logits(
    wanted: Float[Tensor, "token d_vocab"], found: Float[Tensor, "token d_vocab"]
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """KL(wanted ‖ found) in nats, and 1 where both have the same most likely token."""
    return divergence(wanted, found), (wanted.argmax(-1) == found.argmax(-1)).double()
