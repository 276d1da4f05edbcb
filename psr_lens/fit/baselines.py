"""Constant baselines in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from psr_lens.capture import capture
from psr_lens.fit.config import FitConfig
from psr_lens.models import HookedModel
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site


def difference_in_means(
    model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: FitConfig, *, progress: bool = False
) -> dict[str, Site]:
    """The mean of Δ_acc over all tokens of the span, added to every token alike.

    On the span R this is CAA: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition", arXiv 2312.06681.
    """
    captured = capture(model, triplets, names, span=config.span, token_budget=config.token_budget, progress=progress)
    return {
        name: Site(mean[None], torch.zeros_like(mean[None]), torch.ones(1), "constant")
        for name in names
        for mean in [captured[name].float().mean(0)]
    }
