"""Where the prompt steers and where its replacements steer, side by side on the same tokens.

All magnitudes are norms of accumulated differences, `‖A − A_base‖` at `hook_resid_post`, so that a prompt and a replacement are
measured alike.
Relative RMSE is `‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖` over all tokens of the span, as in figure 3 of Heyman & Vandeputte 2026: 1 is no steering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.html_table import table
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches
from psr_lens.activations.paired_passes import TOKEN_BUDGET, Rows
from psr_lens.activations.teacher_forced_pass import Steered, read_batch
from psr_lens.evaluation.acting_sites import ActingSite, positions, relative_rmse, squares
from psr_lens.evaluation.methods import PARAPHRASE, PROMPT, checked_plans
from psr_lens.evaluation.scores import Scores
from psr_lens.models import HookedModel, device_of, fingerprint
from psr_lens.models.hook_points import check_layers
from psr_lens.prompts import Span, TokenTable, Triplet, check_triplets, rephrase, token_table
from psr_lens.replacement import Replacement, SteeringPlan


@dataclass(frozen=True)
class MethodTrace:
    """What one replacement did on the compared tokens."""

    magnitude: Float[Tensor, "token layer"]
    """‖Δ_AS‖ after each layer: how far the replacement has moved the residual stream from the unsteered run."""
    relative_rmse: Float[Tensor, " layer"]
    """‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖ after each layer; 0 is perfect, 1 is no steering."""
    site_layers: tuple[int, ...]
    """The layer of each hook point at which the replacement acts; twice the same where it acts at two points of one layer."""
    coefficient: Float[Tensor, "token site"]
    """‖(α + b_m)·λ(A)·z‖, the length of what is added at each hook point, over all heads, in the activation's units; 0 on tokens
    that are not steered."""
    projection: Float[Tensor, "token site"]
    """What the coefficient stands for: the length of (prompted activation − arriving activation) within the span of the directions, of
    each head's own at `attn.hook_z`. Along a single direction it has a sign."""


@dataclass(frozen=True)
class Comparison:
    """A prompt and its replacements on the same response tokens."""

    instruction: str
    """The instruction of the prompt; the first, where there are several."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    span: Span
    """Which tokens were compared."""
    tokens: TokenTable
    """What each row is."""
    layers: tuple[int, ...]
    """The layers of the columns."""
    magnitude: Float[Tensor, "token layer"]
    """‖Δ_acc‖ of the prompt after each layer."""
    rank1_share: Float[Tensor, " layer"]
    """Share of Δ_acc's energy in its first singular direction, after each layer."""
    methods: Mapping[str, MethodTrace]
    """The replacements, by the names they were given."""
    paraphrase_rmse: Float[Tensor, " layer"] | None
    """Relative RMSE between the instruction and a paraphrase of it, the yardstick; None if no paraphrase was given."""
    alpha: float
    """Strength at which the replacements ran."""
    scores: tuple[Scores, ...] = ()
    """Trait and coherence by method, if they were measured."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What is needed to run it again."""

    def _repr_html_(self) -> str:
        scores = {each.method: each for each in self.scores}
        rmse = {name: trace.relative_rmse for name, trace in self.methods.items()}
        if self.paraphrase_rmse is not None:
            rmse[PARAPHRASE] = self.paraphrase_rmse
        rows = []
        for name in dict.fromkeys([*scores, *rmse]):
            score = scores.get(name)
            rows.append(
                (
                    name,
                    *((score.trait, score.coherence, score.n) if score else ("", "", "")),
                    float(rmse[name][-1]) if name in rmse else "",
                )
            )
        head = ("method", "trait", "coherence", "questions", f"relative RMSE, layer {self.layers[-1]}")
        return table(head, rows, f"{self.instruction!r} on {len(self.tokens):,} tokens, replacements at α = {self.alpha:g}")

    def quantile(self, q: float) -> Float[Tensor, " layer"]:
        """A quantile of ‖Δ_acc‖ over tokens, after each layer."""
        return self.magnitude.quantile(q, dim=0)


def compare(
    model: HookedModel,
    triplets: Sequence[Triplet],
    methods: Mapping[str, Replacement | SteeringPlan],
    *,
    paraphrase: str | None = None,
    layers: str | int | Sequence[int] = "all",
    span: Span = "R",
    alpha: float = 1.0,
    scores: Sequence[Scores] = (),
    settings: Mapping[str, object] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Comparison:
    """Read the same responses under the prompt and under each replacement, and compare token by token.

    Args:
        model: The model.
        triplets: Responses to compare on, best ones that nothing was fitted on.
        methods: Names and replacements, or plans of several.
        paraphrase: The instruction in other words, for the yardstick.
        layers: Layers after which the residual stream is compared.
        span: Which tokens.
        alpha: Strength of every replacement.
        scores: Results of `scores_at`, to be shown beside.
        settings: Anything that a reader needs to run it again.
        token_budget: Most tokens in a batch, padding included.

    Returns:
        A typed result, for `psr_lens.plots` and `psr_lens.reporting`.

    Raises:
        InputError: no triplets, no replacements, a reserved name, a layer out of range.
        ArtifactError: a replacement was made for another model.
    """
    check_triplets(model, triplets)
    plans = checked_plans(model, methods, (PROMPT, PARAPHRASE))
    wanted = check_layers(model, layers)
    names = [f"blocks.{layer}.hook_resid_post" for layer in wanted]
    tokens = token_table(model, triplets, span)
    sites = {label: ActingSite.all_of(plan, device_of(model)) for label, plan in plans.items()}
    acting = [site.name for at in sites.values() for site in at]
    other = [] if paraphrase is None else rephrase(model, triplets, paraphrase)
    # Of each token only numbers are kept, and the prompt's own difference for its singular values.
    rows, errors = Rows(triplets, span), {label: torch.zeros(len(names), dtype=torch.double) for label in (*plans, PARAPHRASE)}
    for indices in progress_bar(list(length_batches(triplets, token_budget)), desc="compare", unit="batch"):
        chosen, take = [triplets[index] for index in indices], rows.of(indices)
        position = positions(chosen, span)
        base = read_batch(model, chosen, names, "base", span).rows
        prompted = read_batch(model, chosen, [*dict.fromkeys([*names, *acting])], "prompted", span).rows
        delta = {name: prompted[name].float() - base[name].float() for name in names}
        for name, values in delta.items():
            take(name, values)
        if other:
            found = read_batch(model, [other[index] for index in indices], names, "prompted", span).rows
            errors[PARAPHRASE] += _errors(found, base, delta)
        for label, plan in plans.items():
            points = [site.name for site in sites[label]]
            steered = read_batch(model, chosen, names, "base", span, steered=Steered(plan, alpha, points))
            errors[label] += _errors(steered.rows, base, delta)
            take(f"{label}/magnitude", torch.stack([(steered.rows[n].float() - base[n].float()).norm(dim=1) for n in names], dim=1))
            read = [site.read(steered.arriving[site.name], prompted[site.name], position, alpha) for site in sites[label]]
            take(f"{label}/coefficient", torch.stack([each.coefficient.abs() for each in read], dim=1))
            take(f"{label}/projection", torch.stack([each.projection for each in read], dim=1))
    energy = torch.stack([squares(rows.tensors[name]).sum() for name in names])
    traces = {
        label: MethodTrace(
            rows.tensors[f"{label}/magnitude"],
            relative_rmse(errors[label], energy).float(),
            tuple(site.layer for site in sites[label]),
            rows.tensors[f"{label}/coefficient"],
            rows.tensors[f"{label}/projection"],
        )
        for label in plans
    }
    return Comparison(
        triplets[0].pair.instruction,
        fingerprint(model),
        span,
        tokens,
        tuple(wanted),
        torch.stack([rows.tensors[name].norm(dim=1) for name in names], dim=1),
        torch.stack([_rank1_share(rows.tensors[name]) for name in names]),
        traces,
        relative_rmse(errors[PARAPHRASE], energy).float() if other else None,
        alpha,
        tuple(scores),
        settings or {},
    )


def _errors(
    found: Mapping[str, Float[Tensor, "token d_model"]],
    base: Mapping[str, Float[Tensor, "token d_model"]],
    delta: Mapping[str, Float[Tensor, "token d_model"]],
) -> Float[Tensor, " layer"]:
    """Sum of ‖Δ_AS − Δ_acc‖² over some tokens, at each point of `delta`."""
    return torch.stack([squares(found[name].float() - base[name].float() - wanted).sum() for name, wanted in delta.items()]).cpu()


def _rank1_share(delta: Float[Tensor, "token d_model"]) -> Float[Tensor, ""]:
    energies: Tensor = torch.linalg.eigvalsh(delta.double().T @ delta.double())
    return (energies[-1] / energies.clamp(min=0).sum()).float()
