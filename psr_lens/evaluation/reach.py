"""How far steered activations are from those that prompts lead to.

Almost surely no prompt leads exactly to a steered activation (Mishra, Khashabi and Liu 2026, "Steered LLM Activations are Non-Surjective",
arXiv 2604.09839); what can be measured is how far away it is. As a nearest-neighbour test of novelty does, the distance to the nearest
activation of unsteered runs is compared with that of prompted runs, held out in the same way.

Distances are Euclidean, each dimension in standard deviations of the references. A few dimensions of a residual stream vary many times as
much as the others (several times the median in SmolLM2-135M) and would be all that is seen. The Mahalanobis distance, also with a shrunken
covariance, treats the activations as one ellipsoid, which they are not: in the organism it puts activations moved by four times a
difference in means at 1.1 times the distance of prompted ones, where the nearest neighbour puts them at 4.6 times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.activations.massive_finder import is_massive
from psr_lens.activations.paired_passes import TOKEN_BUDGET, collect, row_counts
from psr_lens.activations.teacher_forced_pass import PassSteering
from psr_lens.errors import InputError
from psr_lens.evaluation.methods import NONE, PROMPT, Methods, plans_for, strengths
from psr_lens.evaluation.reach_result import Reach
from psr_lens.models import HookedModel, fingerprint
from psr_lens.models.hook_points import Layers, check_layers
from psr_lens.prompts import Context, Span, Triplet, check_triplets, instruction_label, token_table

_AT_ONCE: Final = 2**30
"""Most bytes of activations that are held at once; more layers than fit are read in several passes."""

Run = tuple[Sequence[Triplet], Context]
"""Responses and the prompts that they follow."""


@checks_arguments
def reach(
    model: HookedModel,
    triplets: Sequence[Triplet],
    methods: Methods,
    *,
    references: Sequence[Sequence[Triplet]] = (),
    layers: Layers = "all",
    span: Span = "R",
    alpha: float | Mapping[str, float] = 1.0,
    token_budget: int = TOKEN_BUDGET,
) -> Reach:
    """Measure how far steered activations are from those of unsteered runs, relative to how far prompted runs are from each other.

    After each layer, the references are the activations of the same responses after the base prompts and after the prompts with the
    instruction, and those of `references` after theirs. Each token's distance is to the nearest of them. References to the same question,
    or with the same response, do not count, nor do tokens with massive activations.

    Args:
        model: The model; it is not changed.
        triplets: Responses to steer on, to at least two questions, preferably ones that nothing was fitted on.
        methods: One replacement, plan or adapter, or several by name.
        references: Further lists of triplets, such as those of other instructions, or of the same in other words (`rephrase`). The more
            there are, the smaller the shifts that can be told from what prompts do.
        layers: Layers after which the residual stream is compared.
        span: Which tokens are compared.
        alpha: Strength: one for all methods, or one for each by name.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        A typed result with a distance for each token and layer; `psr.plots.reach` draws it.

    Raises:
        InputError: triplets of a single question, no methods, a reserved name, or a layer out of range.
        ArtifactError: a replacement was made for another model.
        ModelError: activations are not finite; names the hook point.

    Example:
        >>> found = psr.reach(model, triplets, {"A-PSR": pirate}, layers=[2, 5])
        >>> found.distance["A-PSR"].shape == (len(found.tokens), 2)
        True
    """
    plans = plans_for(model, methods, (NONE, PROMPT))
    alphas = strengths(alpha, list(plans))
    check_triplets(model, triplets)
    for index, each in enumerate(references):
        check_triplets(model, each, f"references[{index}]")
    wanted = check_layers(model, layers)
    others = list(_others(triplets, references))
    same = _same(triplets, [triplets, triplets, *(run for run, _ in others)], span)
    if bool(same.all(dim=1).any()):
        raise InputError("triplets", "responses with no others to compare them with", "responses to at least two questions")
    counts, steering = row_counts(triplets, span), {name: PassSteering(plan, alphas[name]) for name, plan in plans.items()}
    bytes_each = 4 * int(model.cfg.d_model) * (same.shape[1] + len(steering) * sum(counts))
    size, found = max(1, _AT_ONCE // bytes_each), []
    for first in range(0, len(wanted), size):
        names = [f"blocks.{layer}.hook_resid_post" for layer in wanted[first : first + size]]

        def read(run: Run, steered: PassSteering | None = None, names: Sequence[str] = names) -> dict[str, Tensor]:
            return collect(model, run[0], names, run[1], span, steered=steered, token_budget=token_budget)

        own = {NONE: read((triplets, "base")), PROMPT: read((triplets, "prompted"))}
        own |= {label: read((triplets, "base"), each) for label, each in steering.items()}
        rest = [read(run) for run in others]
        for name in names:
            runs = {label: each.pop(name).float() for label, each in own.items()}
            known = torch.cat([runs[NONE], runs[PROMPT], *(each.pop(name).float() for each in rest)])
            found.append(_distances(runs, known, same, counts))
    return Reach(
        instruction_label(each.pair for each in triplets),
        fingerprint(model),
        span,
        tuple(wanted),
        alphas,
        token_table(model, triplets, span),
        2 * len(triplets) + sum(len(run) for run, _ in others),
        same.shape[1],
        {label: np.stack([each[label] for each in found], axis=1) for label in (PROMPT, NONE, *plans)},
    )


def _others(triplets: Sequence[Triplet], references: Sequence[Sequence[Triplet]]) -> Iterator[Run]:
    """The runs of further lists, without those that were there before: paraphrases share their base prompts."""
    contexts: tuple[Context, ...] = ("base", "prompted")
    seen = {(each.pair.ids(context), each.response_ids) for each in triplets for context in contexts}
    for each in references:
        for context in contexts:
            new = {(triplet.pair.ids(context), triplet.response_ids): triplet for triplet in each}
            if kept := [triplet for key, triplet in new.items() if key not in seen]:
                yield kept, context
            seen |= set(new)


def _same(triplets: Sequence[Triplet], runs: Sequence[Sequence[Triplet]], span: Span) -> Bool[Tensor, "response reference_token"]:
    """Which tokens of the runs belong to the same question as each response, or to the same response."""
    every = [triplet for run in runs for triplet in run]
    same = [
        [one.pair.question == each.pair.question or one.response_ids == each.response_ids for each in every] for one in triplets
    ]
    return torch.tensor(same).repeat_interleave(torch.tensor(row_counts(every, span)), dim=1)


def _distances(
    runs: Mapping[str, Float[Tensor, "token width"]],
    known: Float[Tensor, "reference_token width"],
    same: Bool[Tensor, "response reference_token"],
    counts: Sequence[int],
) -> dict[str, Float[np.ndarray, " token"]]:
    """Distance of each token of each run from the nearest reference that counts for its response, response by response.

    Args:
        runs: Name to activations after one layer; the references begin with those of `"none"` and `"prompt"`.
        known: The references.
        same: Which references do not count for each response.
        counts: Tokens of each response.
    """
    massive = is_massive(known)
    ordinary = known[~massive]
    centre, scale = ordinary.mean(0), ordinary.std(0)
    scale = torch.where(scale > 0, scale, 1) * known.shape[1] ** 0.5
    near = (known - centre) / scale
    parts = {label: ((each - centre) / scale).split(list(counts)) for label, each in runs.items()}
    found: dict[str, list[Tensor]] = {label: [] for label in runs}
    for index, left_out in enumerate(same):
        rows = torch.cat([each[index] for each in parts.values()])
        between = torch.cdist(rows, near)
        between[:, left_out | massive] = torch.inf
        nearest = between.argmin(1)  # exact only up to rounding errors of a matrix product: the distance is taken anew
        distance = torch.linalg.vector_norm(rows - near[nearest], dim=1)
        distance[between.amin(1).isinf()] = torch.nan
        for label, each in zip(parts, distance.split(counts[index]), strict=True):
            found[label].append(each)
    unknown = massive[: 2 * sum(counts)].view(2, -1).any(0)
    return {label: torch.where(unknown, torch.nan, torch.cat(each)).numpy() for label, each in found.items()}
