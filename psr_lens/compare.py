"""Where the prompt steers and where its replacements steer, side by side on the same tokens.

All strengths are norms of accumulated differences, `‖A − A_base‖` at `hook_resid_post`, so that a prompt and a replacement are
measured alike.
Relative RMSE is `‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖` over all tokens of the span, as in figure 3 of Heyman & Vandeputte 2026: 1 is no steering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens.composition import Part, SteeringPlan
from psr_lens.errors import InputError
from psr_lens.evaluate import Scores
from psr_lens.hook_points import check_layers, layer_of
from psr_lens.models import HookedModel, fingerprint
from psr_lens.notebook import table
from psr_lens.passes import TOKEN_BUDGET, collect
from psr_lens.prompts import Context, Span, TokenTable, Triplet, check_triplets, rephrase, token_table
from psr_lens.replacement import Replacement
from psr_lens.site import Site

PROMPT: Final = "prompt"
"""The method name under which the prompt itself stands."""

PARAPHRASE: Final = "paraphrase"
"""The name under which the yardstick stands: the same instruction in other words."""


@dataclass(frozen=True)
class MethodTrace:
    """What one replacement did on the compared tokens."""

    strength: Float[Tensor, "token layer"]
    """‖Δ_AS‖ after each layer: how far the replacement has moved the residual stream from the unsteered run."""
    relative_rmse: Float[Tensor, "layer"]
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
    strength: Float[Tensor, "token layer"]
    """‖Δ_acc‖ of the prompt after each layer."""
    rank1_share: Float[Tensor, "layer"]
    """Share of Δ_acc's energy in its first singular direction, after each layer."""
    methods: Mapping[str, MethodTrace]
    """The replacements, by the names they were given."""
    paraphrase_rmse: Float[Tensor, "layer"] | None
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

    def quantile(self, q: float) -> Float[Tensor, "layer"]:
        """A quantile of ‖Δ_acc‖ over tokens, after each layer."""
        return self.strength.quantile(q, dim=0)


def compare(
    model: HookedModel,
    triplets: Sequence[Triplet],
    replacements: Mapping[str, Replacement | SteeringPlan],
    *,
    paraphrase: str | None = None,
    layers: str | int | Sequence[int] = "all",
    span: Span = "R",
    alpha: float = 1.0,
    scores: Sequence[Scores] = (),
    settings: Mapping[str, object] | None = None,
    token_budget: int = TOKEN_BUDGET,
    progress: bool = False,
) -> Comparison:
    """Read the same responses under the prompt and under each replacement, and compare token by token.

    Args:
        model: The model.
        triplets: Responses to compare on, best ones that nothing was fitted on.
        replacements: Names and replacements, or plans of several.
        paraphrase: The instruction in other words, for the yardstick.
        layers: Layers after which the residual stream is compared.
        span: Which tokens.
        alpha: Strength of every replacement.
        scores: Results of `scores_at`, to be shown beside.
        settings: Anything that a reader needs to run it again.
        token_budget: Most tokens in a batch, padding included.
        progress: Show progress bars.

    Returns:
        A typed result, for `psr_lens.plots` and `psr_lens.report`.

    Raises:
        InputError: no triplets, no replacements, a reserved name, a layer out of range.
        ArtifactError: a replacement was made for another model.
    """
    check_triplets(model, triplets)
    if not replacements:
        raise InputError("replacements", "none", "at least one name and replacement")
    for name, replacement in replacements.items():
        if name in (PROMPT, PARAPHRASE):
            raise InputError("replacements", repr(name), "names other than 'prompt' and 'paraphrase', which are taken")
        for part in SteeringPlan.of(replacement).parts:
            part.replacement.check_model(model)
            if outside := [site for site in part.replacement.sites if layer_of(site) is None]:
                raise InputError("replacements", f"{name!r}, which acts at {outside}", "replacements that act within layers")
    wanted = check_layers(model, layers)
    names = [f"blocks.{layer}.hook_resid_post" for layer in wanted]

    def read(chosen: Sequence[Triplet], context: Context) -> dict[str, Tensor]:
        return collect(model, chosen, names, context, span, token_budget=token_budget, progress=progress)

    base, prompted = read(triplets, "base"), read(triplets, "steered")
    delta = {name: prompted[name].float() - base[name].float() for name in names}
    yardstick = None
    if paraphrase is not None:
        other = read(rephrase(model, triplets, paraphrase), "steered")
        yardstick = torch.stack([_relative(other[name] - base[name], delta[name]) for name in names])
    table = token_table(model, triplets, span)
    traces = {}
    for label, steering in replacements.items():
        plan = SteeringPlan.of(steering)
        steered = collect(
            model, triplets, names, "base", span, steering=plan, alpha=alpha, token_budget=token_budget, progress=progress
        )
        moved = {name: steered[name].float() - base[name].float() for name in names}
        sites = _sites(plan)
        coefficient, projection = _coefficients(model, triplets, plan, sites, table, span, alpha, token_budget)
        traces[label] = MethodTrace(
            torch.stack([moved[name].norm(dim=1) for name in names], dim=1),
            torch.stack([_relative(moved[name], delta[name]) for name in names]),
            tuple(layer for name in sites if (layer := layer_of(name)) is not None),
            coefficient,
            projection,
        )
    return Comparison(
        triplets[0].pair.instruction,
        fingerprint(model),
        span,
        table,
        tuple(wanted),
        torch.stack([delta[name].norm(dim=1) for name in names], dim=1),
        torch.stack([_rank1_share(delta[name]) for name in names]),
        traces,
        yardstick,
        alpha,
        tuple(scores),
        settings or {},
    )


def _relative(moved: Float[Tensor, "token d_model"], wanted: Float[Tensor, "token d_model"]) -> Float[Tensor, ""]:
    error: Tensor = torch.linalg.vector_norm((moved.float() - wanted).double())
    relative: Tensor = (error / torch.linalg.vector_norm(wanted.double())).float()
    return relative


def _rank1_share(delta: Float[Tensor, "token d_model"]) -> Float[Tensor, ""]:
    energies: Tensor = torch.linalg.eigvalsh(delta.double().T @ delta.double())
    return (energies[-1] / energies.clamp(min=0).sum()).float()


def _sites(plan: SteeringPlan) -> dict[str, list[tuple[Part, Site]]]:
    """Hook points at which a plan acts, by layer, and what each of its parts does there."""
    found: dict[str, list[tuple[Part, Site]]] = {}
    for part in plan.parts:
        for name, site in part.replacement.sites.items():
            found.setdefault(name, []).append((part, site.to(torch.device("cpu"), torch.float32)))
    return dict(sorted(found.items(), key=lambda item: layer_of(item[0]) or 0))


def _coefficients(
    model: HookedModel,
    triplets: Sequence[Triplet],
    plan: SteeringPlan,
    sites: Mapping[str, Sequence[tuple[Part, Site]]],
    table: TokenTable,
    span: Span,
    alpha: float,
    token_budget: int,
) -> tuple[Float[Tensor, "token site"], Float[Tensor, "token site"]]:
    """Length of what is added at each hook point, and of what would have been right within the span of the directions."""
    names = list(sites)
    arriving = collect(model, triplets, names, "base", span, steering=plan, alpha=alpha, arriving=True, token_budget=token_budget)
    targets = collect(model, triplets, names, "steered", span, token_budget=token_budget)
    lengths, projections = [], []
    for name, at in sites.items():
        here = arriving[name].float()
        added = torch.zeros_like(here)
        for part, site in at:
            strength = (alpha * part.factor + part.replacement.offset) * _steered(part.replacement, table)
            added += strength.reshape(-1, *[1] * (here.ndim - 1)) * site.intervention(here)
        lengths.append(added.flatten(1).norm(dim=1))
        projections.append(_along(targets[name].float() - here, torch.cat([site.directions for _, site in at], dim=-2)))
    return torch.stack(lengths, dim=1), torch.stack(projections, dim=1)


def _steered(replacement: Replacement, table: TokenTable) -> Float[Tensor, "token"]:
    """1 for each token that a replacement acts on, 0 for the others."""
    if replacement.span == "QR":
        return torch.ones(len(table))
    return (table.position == -1 if replacement.tokens == "last" else table.position >= -1).float()


def _along(missing: Float[Tensor, "token *head width"], directions: Float[Tensor, "*head rank width"]) -> Float[Tensor, "token"]:
    """Length within the span of the directions, each head's within its own; signed where there is but one direction."""
    _, sizes, basis = torch.linalg.svd(directions, full_matrices=False)
    # Directions may be zero, or multiples of each other.
    basis = basis * (sizes > 1e-6 * sizes.amax(-1, keepdim=True)).unsqueeze(-1)
    within: Tensor = torch.einsum("t...w,...rw->t...r", missing, basis)
    if directions.shape[:-1] == (1,):
        # A prompt may push against a direction, which a ReLU cannot.
        return within[:, 0] * torch.sign(directions[0] @ basis[0])
    length: Tensor = torch.linalg.vector_norm(within.flatten(1), dim=1)
    return length
