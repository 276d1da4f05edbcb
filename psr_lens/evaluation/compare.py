"""Reading the same responses under the prompt and under each replacement, token by token: what fills a `Comparison`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens.activations.massive_activations import listed
from psr_lens.activations.massive_finder import MassiveFinder
from psr_lens.activations.paired_passes import TOKEN_BUDGET, Rows
from psr_lens.activations.teacher_forced_pass import BatchReading
from psr_lens.evaluation.acting_sites import relative_rmse, squares
from psr_lens.evaluation.comparison import Comparison, MethodTrace
from psr_lens.evaluation.mean_difference import lengths_of, mean_directions
from psr_lens.evaluation.methods import PARAPHRASE, PROMPT, Methods, fits_of, plans_for, strengths
from psr_lens.evaluation.rank1_share import Rank1Shares
from psr_lens.evaluation.side_by_side import SideBySide, squared_distances
from psr_lens.models import HookedModel, fingerprint
from psr_lens.models.hook_points import Layers, check_layers
from psr_lens.prompts import Span, Triplet, check_triplets, instruction_label, token_table


@checks_arguments
def compare(
    model: HookedModel,
    triplets: Sequence[Triplet],
    methods: Methods,
    *,
    paraphrase: str | None = None,
    layers: Layers = "all",
    span: Span = "R",
    alpha: float | Mapping[str, float] = 1.0,
    token_budget: int = TOKEN_BUDGET,
) -> Comparison:
    """Read the same responses under the prompt and under each replacement, and compare token by token.

    Tokens with massive activations after any of the layers are found as `massive_activations` does, and the distances from the prompt
    are given with and without them: `.distances`, `.table()`.

    Args:
        model: The model; it is not changed.
        triplets: Responses to compare on, preferably ones that nothing was fitted on.
        methods: One replacement, plan or adapter, or several by name.
        paraphrase: The instruction in other words, for the paraphrase baseline.
        layers: Layers after which the residual stream is compared.
        span: Which tokens are compared.
        alpha: Strength: one for all replacements, or one for each by name.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        A typed result, for `psr_lens.plots` and `psr_lens.report`.

    Raises:
        InputError: no triplets, no methods, a reserved name, a layer out of range.
        ArtifactError: a replacement was made for another model.

    Example:
        >>> psr.compare(model, triplets[:2], {"A-PSR": pirate}, paraphrase="speak as a pirate would .", layers=[2, 5])
        Comparison('talk like a pirate', ... tokens × 2 layers, span R; methods: A-PSR)
    """
    plans = plans_for(model, methods, (PROMPT, PARAPHRASE))
    alphas = strengths(alpha, list(plans))
    check_triplets(model, triplets)
    wanted = check_layers(model, layers)
    paraphrases = () if paraphrase is None else (paraphrase,)
    reading = SideBySide(model, plans, alphas, wanted, span, paraphrases)
    names = reading.residuals
    # Of each token only magnitudes are kept; of the prompt's differences, their second moments. No more than one layer's Δ is held,
    # but that of tokens that may turn out to be massive.
    rows, shares = Rows(triplets, span), Rank1Shares(len(names), int(model.cfg.d_model))
    errors = {label: torch.zeros(len(names), dtype=torch.double) for label in (*plans, PARAPHRASE)}
    energy = torch.zeros(len(names), dtype=torch.double)
    finder = MassiveFinder(len(names), len(reading.contexts))
    directions: dict[str, Tensor] = {}
    for batch in reading.batches(triplets, token_budget):
        directions = directions or mean_directions(reading, triplets, batch, token_budget)
        take, base = rows.of(batch.indices), batch.base
        magnitudes, components = [], []
        for column, name in enumerate(names):
            for context, unsteered in enumerate(batch.unsteered):
                finder.look(column, context, unsteered.rows[name])
        numbers = rows.at(batch.indices)
        finder.add(numbers)
        possible = finder.possible(numbers)
        for column, name in enumerate(names):
            delta = _moved(batch.prompted, base, name)
            magnitude, component = lengths_of(delta, directions[name])
            magnitudes.append(magnitude)
            components.append(component)
            energy[column] += squares(delta).sum().cpu()
            shares.add(column, delta, possible)
        shares.end(numbers[possible])
        take(PROMPT, torch.stack(magnitudes, dim=1))
        take(f"{PROMPT}/component", torch.stack(components, dim=1))
        take(f"{PROMPT}/base_norm", torch.stack([base.rows[name].float().norm(dim=1) for name in names], dim=1))
        for rephrased in batch.rephrased:
            squared = squared_distances(rephrased, batch.prompted, names)
            errors[PARAPHRASE] += squared.sum(0)
            take(f"{PARAPHRASE}/error", squared.sqrt().float())
        for steered in reading.steered(batch):
            label, found = steered.label, steered.reading
            squared = squared_distances(found, batch.prompted, names)
            errors[label] += squared.sum(0)
            take(f"{label}/error", squared.sqrt().float())
            lengths = [lengths_of(_moved(found, base, name), directions[name]) for name in names]
            take(f"{label}/magnitude", torch.stack([magnitude for magnitude, _ in lengths], dim=1))
            take(f"{label}/component", torch.stack([component for _, component in lengths], dim=1))
            take(f"{label}/coefficient", steered.columns("coefficient"))
            take(f"{label}/projection", steered.columns("projection"))
    massive = finder.finish()
    rank1_share, without_massive = shares.finish(massive.mask(rows.offsets[-1]))
    traces = {
        label: MethodTrace(
            rows.tensors[f"{label}/magnitude"],
            relative_rmse(errors[label], energy).float(),
            tuple(site.name for site in reading.sites[label]),
            rows.tensors[f"{label}/coefficient"],
            rows.tensors[f"{label}/projection"],
            error=rows.tensors[f"{label}/error"],
            component=rows.tensors[f"{label}/component"],
            fits=fits_of(plan),
        )
        for label, plan in plans.items()
    }
    return Comparison(
        instruction_label(each.pair for each in triplets),
        fingerprint(model),
        span,
        token_table(model, triplets, span),
        tuple(wanted),
        rows.tensors[PROMPT],
        rank1_share,
        traces,
        relative_rmse(errors[PARAPHRASE], energy).float() if paraphrases else None,
        alphas,
        paraphrase_error=rows.tensors.get(f"{PARAPHRASE}/error"),
        massive=listed(massive, model, triplets, span, wanted, reading.contexts),
        base_norm=rows.tensors[f"{PROMPT}/base_norm"],
        component=rows.tensors[f"{PROMPT}/component"],
        rank1_share_without_massive=without_massive,
    )


def _moved(found: BatchReading, base: BatchReading, name: str) -> Float[Tensor, "token d_model"]:
    """What a run changes at a hook point, against the base run."""
    return found.rows[name].float() - base.rows[name].float()
