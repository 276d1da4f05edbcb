"""ReFT-r1, the rank-1 representation fine-tuning of AxBench.

Wu et al. 2025, "AxBench: Steering LLMs? Even Simple Baselines Outperform Sparse Autoencoders", arXiv 2501.17148. One direction `w` of
length 1 detects and steers. The latent at token `i` is

    a_i = ReLU(h_i · w)

In training every token is steered with the mean of the `k` largest latents of its sequence,

    h_i + (1/k · Σ_{j ∈ TopK(a)} a_j) · w

to minimise −log p(y' | x), with the penalty Σ_{i ∉ TopK(a)} |a_i| on the other latents, which makes the detector sparse. At inference the
latents are not used: `w` is added with a strength that the user sets.

This version differs from the paper's: the values of `TOP_K` and `SPARSITY` are a guess and were not checked against the authors' settings;
the latent has no bias (AxBench's is ReLU(h_i · w + b)); the sequence is the span, R or QR; and `alpha` 1 is the mean coefficient of
training. So numbers of this baseline are not comparable with those of their tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens.activations.batches import ContextBatch, length_batches
from psr_lens.fitting.gradient_descent.objective import Likelihood, measured_points, read_residuals
from psr_lens.fitting.gradient_descent.parameters import Parameters
from psr_lens.fitting.gradient_descent.training import Trained, train
from psr_lens.fitting.settings.baselines import ReFT
from psr_lens.fitting.settings.solvers import Joint, as_joint
from psr_lens.models import HookedModel, hooked
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site
from psr_lens.replacement.site import per_head

TOP_K: Final = 8
"""Latents of a sequence whose mean is its coefficient; all of them on a shorter span. Our choice, not the paper's."""

SPARSITY: Final = 0.005
"""Weight of the penalty on the other latents. Our choice, not the paper's."""


def fit_reft_r1(
    model: HookedModel,
    triplets: Sequence[Triplet],
    names: Sequence[str],
    config: ReFT,
    *,
    checkpoint: str | Path | None = None,
) -> Trained:
    """Train one direction per site; several sites are trained together, each with latents of its own.

    The sequence is the span of the settings. The result is constant steering: the directions have length 1, and the bias is the mean
    coefficient over the triplets.

    Raises:
        InputError, ArtifactError, FitError: as `fit_joint`.
    """
    joint = as_joint(config, objective="ll", regulariser=SPARSITY, normalise=False)

    def objective(known: Parameters | None) -> ReftR1:  # a start that is drawn is as cheap as one that is read
        return ReftR1(model, triplets, Parameters.random(model, names, joint), joint)

    return train(model, triplets, names, joint, objective, asked=config, checkpoint=checkpoint)


class ReftR1(Likelihood):
    """The objective. Of the parameters only the directions are used, as detectors and as steering vectors."""

    def __init__(self, model: HookedModel, triplets: Sequence[Triplet], parameters: Parameters, config: Joint) -> None:
        """Scale the directions to length 1."""
        parameters.weights.requires_grad_(False)
        parameters.bias.requires_grad_(False)
        super().__init__(model, triplets, parameters, config)
        self.after_step()

    def after_step(self) -> None:
        """Scale the directions back to length 1."""
        directions = self.parameters.directions.detach()
        directions /= directions.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def sites(self) -> dict[str, Site]:
        """Constant steering with the mean coefficient of training."""
        strengths = self._mean_strengths()
        return {
            name: Site(site.directions.clone(), site.weights * 0, strengths[name].cpu(), "constant")
            for name, site in self.parameters.finished().items()
        }

    def _steering(self, batch: ContextBatch, indices: Sequence[int], penalties: list[Tensor]) -> list[tuple[str, Any]]:
        return self._hooks(batch, penalties, {name: [] for name in self.parameters.names})

    def _hooks(self, batch: ContextBatch, penalties: list[Tensor], latents: dict[str, list[Tensor]]) -> list[tuple[str, Any]]:
        return [
            (name, _reft_hook(site.directions, batch.span, penalties, latents[name]))
            for name, site in self.parameters.sites().items()
        ]

    def _mean_strengths(self) -> dict[str, Tensor]:
        seen: dict[str, list[Tensor]] = {name: [] for name in self.parameters.names}
        for indices in length_batches(self.triplets, self.config.token_budget):
            batch = self._batch(indices)
            with torch.no_grad(), self.precision(), hooked(self.model, self._hooks(batch, [], seen)):
                read_residuals(self.model, batch, measured_points(self.model, self.parameters.names)[-1])
        return {name: torch.cat(parts).mean(0) for name, parts in seen.items()}


def _reft_hook(
    directions: Float[Tensor, "*head 1 width"],
    span: Bool[Tensor, "batch position"],
    penalties: list[Tensor],
    means: list[Tensor],
) -> Any:
    def hook(activation: Tensor, hook: Any) -> Tensor:
        device = activation.device
        here = directions.to(device)
        with torch.autocast(device.type, enabled=False):
            detector = Site(here, here, torch.zeros_like(here[..., 0]), "relu")
            latents = detector.coefficients(activation.to(here.dtype))  # [batch, position, *head, 1]
            inside = span.to(device).reshape(*span.shape, *[1] * (latents.ndim - 2))
            latents = latents * inside
            # Latents are never negative, so the zeros outside of the span are never chosen before a positive one.
            largest = latents.topk(min(TOP_K, span.shape[1]), dim=1).values.sum(1)
            penalties.append((latents.sum(1) - largest).sum().to(span.device))
            mean = largest / span.sum(1).clamp(max=TOP_K).to(device).reshape(-1, *[1] * (largest.ndim - 1))
            means.append(mean.detach().to(span.device))
            added = per_head(mean[:, None] * inside, here)
            return activation + added.to(activation.dtype)

    return hook
