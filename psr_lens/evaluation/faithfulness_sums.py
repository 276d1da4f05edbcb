"""How close one method comes to a prompt, in sums by response that any number and its interval can be made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens.activations.paired_passes import row_counts
from psr_lens.activations.teacher_forced_pass import BatchReading
from psr_lens.evaluation.acting_sites import ActingSite, SiteReading, squares
from psr_lens.prompts import Span, Triplet
from psr_lens.results.resampling import Estimate, estimate, pearson, ratio, spearman

_AT_ONCE: Final = 2**22
"""Most logits that are compared at once."""


@dataclass(frozen=True)
class Closeness:
    """How close one method comes to a prompt, in sums over the tokens of each response."""

    error: Float[np.ndarray, "response layer"]
    """Σ ‖Δ_method − Δ_acc‖² after each layer; Δ_acc is the prompt's."""
    energy: Float[np.ndarray, "response layer"]
    """Σ ‖Δ_acc‖² after each layer."""
    kl: Float[np.ndarray, " response"]
    """Σ KL(prompted ‖ method) of the distributions of the response tokens, in nats."""
    agreed: Float[np.ndarray, " response"]
    """How many of these distributions have the prompted one's likeliest token as theirs."""
    predicted: Float[np.ndarray, " response"]
    """How many distributions there are: one a response token, the first, which the last prompt token predicts, among them."""

    @cached_property
    def relative_rmse(self) -> Estimate:
        """‖Δ_method − Δ_acc‖ / ‖Δ_acc‖ after each layer; 0 is the prompt, 1 no steering."""
        squared = ratio(self.error, self.energy)
        return estimate(lambda weights: np.sqrt(squared(weights)), len(self.error))

    @cached_property
    def explained(self) -> Estimate:
        """1 − relative RMSE², after each layer: the share of Δ_acc's energy that the method makes up for; below 0 it adds error."""
        squared = ratio(self.error, self.energy)
        return estimate(lambda weights: 1 - squared(weights), len(self.error))

    @cached_property
    def divergence(self) -> Estimate:
        """Mean KL(prompted ‖ method) of the next token, in nats."""
        return estimate(ratio(self.kl, self.predicted), len(self.kl))

    @cached_property
    def agreement(self) -> Estimate:
        """Share of response tokens at which both find the same token likeliest, 0–1."""
        return estimate(ratio(self.agreed, self.predicted), len(self.kl))

    def divergence_removed(self, without: Closeness) -> Estimate:
        """1 − KL / KL without steering: the share of the prompt's effect on the next token that is there; below 0 it adds to it."""
        left = ratio(self.kl, without.kl)
        return estimate(lambda weights: 1 - left(weights), len(self.kl))


@dataclass(frozen=True)
class SiteFaithfulness:
    """One hook point of a replacement: do its coefficients follow what the prompt calls for, and what can its directions reach?

    What is `missing` when an activation arrives is prompted − arriving: at the first site Δ_acc itself, at later ones what earlier sites
    left of it.
    """

    hook: str
    """The hook point."""
    layer: int
    """Its layer."""
    rank: int
    """Dimensions of the span of the directions, over all heads."""
    response: Int[np.ndarray, " token"]
    """Which response each token belongs to; only tokens on which the replacement acts."""
    coefficient: Float[np.ndarray, " token"]
    """Length of what is added, in the activation's units; signed along a single direction."""
    projection: Float[np.ndarray, " token"]
    """Length of what is missing within the span of the directions; signed along a single direction."""
    delta: Float[np.ndarray, " response"]
    """Σ ‖Δ_acc‖² at the hook point."""
    delta_within: Float[np.ndarray, " response"]
    """The same within the span of the directions."""
    missing: Float[np.ndarray, " response"]
    """Σ ‖missing‖²."""
    within: Float[np.ndarray, " response"]
    """The same within the span of the directions."""
    left: Float[np.ndarray, " response"]
    """Σ ‖missing − added‖²."""

    @cached_property
    def pearson(self) -> Estimate:
        """Correlation of coefficient and projection over tokens; NaN where either is the same on all, as a constant's is."""
        return pearson(self.coefficient, self.projection, self.response, len(self.delta))

    @cached_property
    def spearman(self) -> Estimate:
        """The same of their ranks."""
        return spearman(self.coefficient, self.projection, self.response, len(self.delta))

    @cached_property
    def share_in_span(self) -> Estimate:
        """Share of Δ_acc's energy in the span of the directions."""
        return estimate(ratio(self.delta_within, self.delta), len(self.delta))

    @cached_property
    def ceiling(self) -> Estimate:
        """Share of what is missing that lies in the span of the directions: the rank's ceiling, with coefficients that were perfect."""
        return estimate(ratio(self.within, self.missing), len(self.delta))

    @cached_property
    def filled(self) -> Estimate:
        """Share of what is missing that is there after the site has acted; at most the ceiling, below 0 where it does harm."""
        left = ratio(self.left, self.missing)
        return estimate(lambda weights: 1 - left(weights), len(self.delta))


class ClosenessSums:
    """Makes a `Closeness` batch by batch; a response that is added several times counts as often."""

    def __init__(self, names: Sequence[str], responses: int) -> None:
        """Start at nothing, for the residual stream at some hook points."""
        self._names = names
        self._layered = np.zeros((2, responses, len(names)))
        self._single = np.zeros((3, responses))

    def add(
        self,
        indices: Sequence[int],
        triplets: Sequence[Triplet],
        span: Span,
        found: BatchReading,
        base: BatchReading,
        target: BatchReading,
    ) -> None:
        """Add a batch: what the method made of it, what the model makes of it unsteered, and what it makes of it under the prompt."""
        spanned = row_counts(triplets, span)
        for place, name in enumerate(self._names):
            delta = target.rows[name].float() - base.rows[name].float()
            error = found.rows[name].float() - base.rows[name].float() - delta
            self._layered[0, indices, place] += by_response(squares(error), spanned)
            self._layered[1, indices, place] += by_response(squares(delta), spanned)
        predicted = [len(each.response_ids) for each in triplets]
        if found.logits is not None and target.logits is not None:
            divergence, agreed = compare_logits(target.logits, found.logits)
            self._single[0, indices] += by_response(divergence, predicted)
            self._single[1, indices] += by_response(agreed, predicted)
            self._single[2, indices] += predicted

    def finish(self) -> Closeness:
        """All that was added."""
        return Closeness(*self._layered, *self._single)


class SiteSums:
    """Makes a `SiteFaithfulness` batch by batch."""

    def __init__(self, site: ActingSite, responses: int) -> None:
        """Start at nothing."""
        self.site = site
        self._tokens: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._sums = np.zeros((5, responses))

    def add(
        self,
        indices: Sequence[int],
        triplets: Sequence[Triplet],
        span: Span,
        reading: SiteReading,
        delta: Float[Tensor, "token *head width"],
    ) -> None:
        """Add a batch: what was done at the hook point, and the prompt's own difference there."""
        spanned = row_counts(triplets, span)
        owner, acting = np.repeat(indices, spanned), reading.acting.cpu().numpy()
        self._tokens.append(
            (owner[acting], *(each.double().cpu().numpy()[acting] for each in (reading.coefficient, reading.projection)))
        )
        energies = (squares(delta), self.site.within(delta), reading.missing, reading.within, reading.left)
        for place, energy in enumerate(energies):
            self._sums[place, indices] += by_response(energy, spanned)

    def finish(self) -> SiteFaithfulness:
        """All that was added, tokens in the order of the responses."""
        response, coefficient, projection = (np.concatenate(each) for each in zip(*self._tokens, strict=True))
        order = np.argsort(response, kind="stable")
        return SiteFaithfulness(
            self.site.name, self.site.layer, self.site.rank, response[order], coefficient[order], projection[order], *self._sums
        )


def by_response(values: Float[Tensor, " token"], counts: Sequence[int]) -> Float[np.ndarray, " response"]:
    """Sums over each response's tokens, which follow one another."""
    return np.add.reduceat(values.double().cpu().numpy(), np.cumsum([0, *counts[:-1]]))


def compare_logits(
    wanted: Float[Tensor, "token d_vocab"], found: Float[Tensor, "token d_vocab"]
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """KL(wanted ‖ found) in nats, and 1 where both have the same likeliest token; in double precision, a few tokens at a time."""
    divergence, agreed = [], []
    size = max(1, _AT_ONCE // wanted.shape[1])
    for ours, theirs in zip(wanted.split(size), found.split(size), strict=True):
        p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        # A token that cannot come (−∞ in both) adds nothing.
        divergence.append(torch.where(p == -torch.inf, 0, p.exp() * (p - q)).sum(-1))
        agreed.append((ours.argmax(-1) == theirs.argmax(-1)).double())
    return torch.cat(divergence), torch.cat(agreed)
