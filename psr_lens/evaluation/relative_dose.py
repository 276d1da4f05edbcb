"""How much a method adds to an activation, relative to the activation itself: ‖(α + b_m)·λ(A)·z‖ / ‖A‖."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.numbers import counted
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches
from psr_lens.activations.paired_passes import Rows
from psr_lens.activations.teacher_forced_pass import PassSteering, read_batch
from psr_lens.errors import InputError
from psr_lens.evaluation.acting_sites import ActingSite, positions, squares
from psr_lens.evaluation.methods import Plan
from psr_lens.models import HookedModel, device_of
from psr_lens.prompts import Span, Triplet
from psr_lens.replacement import SteeringPlan
from psr_lens.results.bootstrap import NO_INTERVAL, Estimate, estimate, ratio
from psr_lens.results.result import Result

DOSE: Final = "relative dose"
"""What the table calls it."""

PERCENTILE: Final = 0.99
"""The quantile that is compared with a limit, so that a single token does not decide."""


@dataclass(frozen=True, eq=False, repr=False)
class Dose:
    """What one method added to the activations of its own answers, relative to those activations as they arrived."""

    layers: tuple[int, ...]
    """The layer of each hook point at which the method acts; twice if it acts at two of the layer's."""
    ratio: Float[np.ndarray, "token site"]
    """‖(α + b_m)·λ(A)·z‖ / ‖A‖, over all heads; NaN on tokens on which the method does not act."""
    answer: Int[np.ndarray, " token"]
    """Index of the answer that each token belongs to."""

    def __repr__(self) -> str:
        """Size, mean and 99th percentile in one line."""
        size = f"{counted(len(self.ratio), 'token')} × {counted(len(self.layers), 'hook point')}"
        return f"Dose({size}; mean {float(self.mean().value):.3g}, 99th percentile {self.quantile(0.99):.3g})"

    @checks_arguments
    def mean(self, layer: int | None = None) -> Estimate:
        """Mean over the tokens on which the method acts, at one layer or at all; its interval is over answers.

        Raises:
            InputError: a layer at which the method does not act.
        """
        rows = self._at(layer)
        acting = np.isfinite(rows)
        sums, counts = (
            np.bincount(self.answer, each.sum(1), minlength=int(self.answer.max()) + 1)
            for each in (np.where(acting, rows, 0.0), acting)
        )
        return estimate(ratio(sums, counts), len(sums))

    @checks_arguments
    def quantile(self, q: float, layer: int | None = None) -> float:
        """A quantile over the tokens on which the method acts, at one layer or at all.

        Raises:
            InputError: `q` is not from 0 to 1, or a layer at which the method does not act.
        """
        if not 0 <= q <= 1:
            raise InputError("q", repr(q), "a number from 0 to 1")
        rows = self._at(layer)
        return float(np.quantile(rows[np.isfinite(rows)], q))

    def share_over(self, limit: float) -> float:
        """Share of all tokens and hook points that got more than a limit, in per cent."""
        rows = self.ratio[np.isfinite(self.ratio)]
        return 100 * float((rows > limit).mean())

    def is_over(self, limit: float) -> bool:
        """Whether more than 1 % of the tokens got more than a limit at any layer."""
        return any(self.quantile(PERCENTILE, layer) > limit for layer in sorted(set(self.layers)))

    def _at(self, layer: int | None) -> Float[np.ndarray, "token site"]:
        if layer is not None and layer not in self.layers:
            raise InputError("layer", layer, f"one of {', '.join(map(str, sorted(set(self.layers))))}, or None for all")
        return self.ratio if layer is None else self.ratio[:, np.array(self.layers) == layer]


def doses(
    model: HookedModel,
    answers: Mapping[str, Sequence[Triplet]],
    plans: Mapping[str, Plan],
    alphas: Mapping[str, float],
    token_budget: int,
) -> dict[str, Dose]:
    """The dose of each replacement and plan, on its own answers, read again with it in force; an adapter adds to no activation.

    Args:
        model: The model.
        answers: Each method's answers.
        plans: The methods by name.
        alphas: Strength of each method.
        token_budget: Most tokens in a batch, padding included.
    """
    steering = {name: plan for name, plan in plans.items() if isinstance(plan, SteeringPlan)}
    return {name: _dose(model, answers[name], plan, alphas[name], token_budget) for name, plan in steering.items()}


def _dose(model: HookedModel, answers: Sequence[Triplet], plan: SteeringPlan, alpha: float, token_budget: int) -> Dose:
    span: Span = "QR" if any(part.replacement.span == "QR" for part in plan.parts) else "R"
    sites = ActingSite.all_of(plan, device_of(model))
    steered, rows = PassSteering(plan, alpha, [site.name for site in sites]), Rows(answers, span)
    for indices in progress_bar(list(length_batches(answers, token_budget)), desc="dose", unit="batch"):
        chosen = [answers[index] for index in indices]
        arriving = read_batch(model, chosen, [], "base", span, steered=steered).arriving
        position = positions(chosen, span)
        found = [_ratio(site, arriving[site.name], position, alpha).cpu() for site in sites]
        rows.of(indices)("dose", torch.stack(found, dim=1))
    owner = np.repeat(np.arange(len(answers)), rows.counts)
    return Dose(tuple(site.layer for site in sites), rows.tensors["dose"].numpy(), owner)


def _ratio(
    site: ActingSite, arriving: Float[Tensor, "token *head width"], position: Int[Tensor, " token"], alpha: float
) -> Float[Tensor, " token"]:
    """‖added‖ / ‖A‖ at one hook point; NaN where the method does not act."""
    added, acting = site.added(arriving, position, alpha)
    least = torch.finfo(torch.float64).tiny
    sizes = squares(added).sqrt() / squares(arriving).sqrt().clamp_min(least)
    return torch.where(acting, sizes, torch.nan)


def dose_rows(method: str, dose: Dose, limit: float | None, labels: Mapping[str, Any]) -> list[Result]:
    """The rows of a table: mean, 99th percentile and maximum over all layers and at each, and the share over the limit, if there is one."""
    found = []
    for layer in (None, *sorted(set(dose.layers))):
        mean = dose.mean(layer)
        found.append(Result(method, DOSE, float(mean.value), mean.n, mean.interval(), layer=layer, **labels))
        for name, q in (("99th percentile", PERCENTILE), ("maximum", 1.0)):
            found.append(Result(method, f"{DOSE}, {name}", dose.quantile(q, layer), mean.n, NO_INTERVAL, layer=layer, **labels))
    if limit is not None:
        found.append(Result(method, f"{DOSE} over {limit:g} (%)", dose.share_over(limit), mean.n, NO_INTERVAL, **labels))
    return found
