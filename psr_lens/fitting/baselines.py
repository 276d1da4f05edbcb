"""Baselines in closed form: one direction per site, from the differences between the two contexts.

With several sites, `difference_in_means` uses what each layer adds by itself (Δ_loc), since what earlier sites add is still in the residual
stream at a later one. A single site uses the whole difference to the unsteered run (Δ_acc).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.activations.capture import capture
from psr_lens.activations.paired_passes import PairedReading, collect, row_counts
from psr_lens.fitting.settings.baselines import ActAdd, DiM, LastToken, Stolfo
from psr_lens.fitting.settings.solvers import FitConfig
from psr_lens.models import HookedModel
from psr_lens.prompts import Triplet
from psr_lens.replacement import Site


def difference_in_means(model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: DiM) -> dict[str, Site]:
    """The mean of Δ over all tokens of the span, added to every token alike.

    On the span R and at one layer this is CAA: Rimsky et al. 2024, "Steering Llama 2 via Contrastive Activation Addition",
    arXiv 2312.06681.
    """
    means = capture(
        model,
        triplets,
        names,
        to=_Means(),
        span=config.span,
        difference="accumulated" if len(names) == 1 else "local",
        token_budget=config.token_budget,
    )
    return {name: _constant(means[name]) for name in names}


def activation_addition(model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: ActAdd) -> dict[str, Site]:
    """ActAdd: the difference between a *single* pair of prompts, that of the first triplet, at the last prompt token.

    Turner et al. 2023, "Activation Addition: Steering Language Models Without Optimization", arXiv 2308.10248.
    There the differences of all prompt tokens are added to the first tokens of the user's prompt. Here, as in later comparisons, that of
    the last token is added to every token of the span, so that strengths are comparable across methods.
    """
    base, prompted = _last_prompt_token(model, triplets[:1], names, config)
    return {name: _constant(prompted[name][0] - base[name][0]) for name in names}


def last_token_difference(
    model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: LastToken
) -> dict[str, Site]:
    """The mean difference at the last prompt token, added at that token alone: no generated token is steered.

    Todd et al. 2024, "Function Vectors in Large Language Models", arXiv 2310.15213, add theirs at this token.
    """
    base, prompted = _last_prompt_token(model, triplets, names, config)
    return {name: _constant((prompted[name] - base[name]).mean(0)) for name in names}


def projection_target(model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: Stolfo) -> dict[str, Site]:
    """Move each token's projection on a direction to its mean under the instruction.

    Stolfo et al. 2025, "Improving Instruction-Following in Language Models through Activation Steering", arXiv 2410.12877, section 3: u
    is the mean difference at the last prompt token, scaled to length 1, and a token gets (z̄ − A·u)·u with z̄ the mean projection at the
    last token of the prompts with the instruction.
    """
    base, prompted = _last_prompt_token(model, triplets, names, config)
    sites = {}
    for name in names:
        mean = (prompted[name] - base[name]).mean(0)
        unit = mean / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        target = (prompted[name] * unit).sum(-1).mean(0)
        sites[name] = replace(_constant(unit), bias=target[..., None], rule="projection")
    return sites


def _constant(direction: Float[Tensor, "*head width"]) -> Site:
    directions = direction.float().unsqueeze(-2)
    return Site(directions, torch.zeros_like(directions), torch.ones(directions.shape[:-1], dtype=torch.float32), "constant")


@dataclass(frozen=True)
class _Means:
    """A destination of `capture` that keeps only the mean over tokens."""

    def receive(self, reading: PairedReading) -> dict[str, Float[Tensor, "..."]]:
        """Average what is read, in double precision."""
        sums: dict[str, Tensor] = {}
        counts = row_counts(reading.triplets, reading.span)

        def take(name: str, rows: Tensor) -> None:
            total = rows.double().sum(0).cpu()
            sums[name] = sums[name] + total if name in sums else total

        with reading.bar() as bar:
            for indices in reading.batches(range(len(reading.triplets))):
                reading.read(indices, take)
                bar.update(sum(counts[index] for index in indices))
        return {name: total / sum(counts) for name, total in sums.items()}


def _last_prompt_token(
    model: HookedModel, triplets: Sequence[Triplet], names: Sequence[str], config: FitConfig
) -> tuple[dict[str, Float[Tensor, "triplet ..."]], dict[str, Float[Tensor, "triplet ..."]]]:
    """Activations at the last prompt token in both contexts; a single response token is read, and dropped."""
    short = [replace(triplet, response_ids=triplet.response_ids[:1]) for triplet in triplets]
    base, prompted = (
        {
            name: rows[::2].float()
            for name, rows in collect(model, short, names, context, "R", token_budget=config.token_budget).items()
        }
        for context in ("base", "prompted")
    )
    return base, prompted
