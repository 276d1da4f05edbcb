"""Where the prompt steers and where its replacements steer, side by side on the same tokens.

All magnitudes are norms of accumulated differences, `‖A − A_base‖` at `hook_resid_post`, so that a prompt and a replacement are
measured in the same way.
Relative RMSE is `‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖` over all tokens of the span, as in figure 3 of Heyman & Vandeputte 2026: 1 is no steering.
It is given without massive tokens and at the median token too, since one massive token may outweigh all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens._utils.optional import package
from psr_lens.activations.massive import MassiveFinder
from psr_lens.activations.massive_activations import MassiveActivations, listed
from psr_lens.activations.paired_passes import TOKEN_BUDGET, Rows
from psr_lens.activations.statistics import SecondMoments
from psr_lens.activations.teacher_forced_pass import BatchReading
from psr_lens.errors import InputError
from psr_lens.evaluation.acting_sites import relative_rmse, squares
from psr_lens.evaluation.distance import Distance, distance
from psr_lens.evaluation.mean_difference import lengths_of, mean_directions
from psr_lens.evaluation.methods import PARAPHRASE, PROMPT, Methods, plans_for, strengths
from psr_lens.evaluation.scores import Scores
from psr_lens.evaluation.side_by_side import Batch, SideBySide
from psr_lens.models import HookedModel, fingerprint
from psr_lens.models.hook_points import Layers, check_layers
from psr_lens.prompts import Span, TokenTable, Triplet, check_triplets, token_table
from psr_lens.results.table import ResultTable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class MethodTrace:
    """What one replacement did on the compared tokens."""

    magnitude: Float[Tensor, "token layer"]
    """‖Δ_AS‖ after each layer: how far the replacement has moved the residual stream from the unsteered run."""
    relative_rmse: Float[Tensor, " layer"]
    """‖Δ_AS − Δ_acc‖ / ‖Δ_acc‖ after each layer; 0 is perfect, 1 is no steering."""
    site_layers: tuple[int, ...]
    """The layer of each hook point at which the replacement acts; a layer appears twice if the replacement acts at two points of it."""
    coefficient: Float[Tensor, "token site"]
    """The length of what is added at each hook point, (α + b_m)·λ(A)·z, over all heads, in the activation's units; 0 on tokens that are not
    steered. It has a sign if there is a single direction."""
    projection: Float[Tensor, "token site"]
    """What the coefficient should have been: the length of (prompted activation − arriving activation) within the span of the
    directions, of each head's own directions at `attn.hook_z`. It has a sign if there is a single direction."""
    error: Float[Tensor, "token layer"] | None = None
    """‖Δ_AS − Δ_acc‖ after each layer: how far each token is from the prompt's effect; None if it is not known."""
    component: Float[Tensor, "token layer"] | None = None
    """Signed length of Δ_AS along the direction of the prompt's mean difference, after each layer, in the activation's units."""

    def __repr__(self) -> str:
        """Tokens, layers and hook points in one line."""
        tokens, layers = map(counted, self.magnitude.shape, ("token", "layer"))
        return f"MethodTrace({tokens} × {layers}; acts at layers {', '.join(map(str, self.site_layers))})"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """A prompt and its replacements on the same response tokens, as `compare` returns it.

    Example:
        >>> comparison
        Comparison('talk like a pirate', ... tokens × 6 layers, span R; methods: A-PSR, CAA)
        >>> comparison.methods["A-PSR"].relative_rmse.shape
        torch.Size([6])
    """

    instruction: str
    """The instruction of the prompt; the first, if there are several."""
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
    """The replacements by name."""
    paraphrase_rmse: Float[Tensor, " layer"] | None
    """Relative RMSE between the instruction and a paraphrase of it, the paraphrase baseline; None without a paraphrase."""
    alphas: Mapping[str, float]
    """Strength of each replacement."""
    scores: tuple[Scores, ...] = ()
    """Trait and coherence by method, if they were measured."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What is needed to run the comparison again."""
    paraphrase_error: Float[Tensor, "token layer"] | None = None
    """‖Δ of the paraphrase − Δ_acc‖ of each token after each layer; None without a paraphrase, or if it is not known."""
    massive: MassiveActivations | None = None
    """The tokens with massive activations under the base prompt, the prompt or the paraphrase; None if they were not looked for."""
    base_norm: Float[Tensor, "token layer"] | None = None
    """‖A‖ of the unsteered run after each layer; None in a result that does not hold it."""
    component: Float[Tensor, "token layer"] | None = None
    """Signed length of Δ_acc along the direction of its mean over all compared tokens, after each layer, in the activation's units; None in
    a result that does not hold it. Its mean over tokens is the length of the mean difference."""

    def __repr__(self) -> str:
        """Instruction, size and methods in one line."""
        size = f"{counted(len(self.tokens), 'token')} × {counted(len(self.layers), 'layer')}, span {self.span}"
        return f"Comparison({self.instruction!r}, {size}; methods: {', '.join(self.methods)})"

    @property
    def strengths(self) -> str:
        """The strengths as text: one number if all replacements share it, else one for each."""
        if len(set(self.alphas.values())) == 1:
            return f"{next(iter(self.alphas.values())):g}"
        return ", ".join(f"{alpha:g} ({name})" for name, alpha in self.alphas.items())

    @property
    def distances(self) -> dict[str, Distance]:
        """Distance from the prompt after each layer, by method, and of the paraphrase baseline if there is one.

        Example:
            >>> comparison.distances["A-PSR"].median.shape
            torch.Size([6])
        """
        found = {name: (trace.relative_rmse, trace.error) for name, trace in self.methods.items()}
        if self.paraphrase_rmse is not None:
            found[PARAPHRASE] = (self.paraphrase_rmse, self.paraphrase_error)
        massive = None if self.massive is None else self.massive.mask(self.tokens).any(dim=1)
        return {name: distance(rmse, error, self.magnitude, massive) for name, (rmse, error) in found.items()}

    def _repr_html_(self) -> str:
        scores, distances = {each.method: each for each in self.scores}, self.distances
        rows: list[tuple[object, ...]] = []
        for name in dict.fromkeys([*scores, *distances]):
            score, found = scores.get(name), distances.get(name)
            last = (found.relative_rmse, found.without_massive, found.median) if found else ()
            rows.append(
                (
                    name,
                    *((score.trait, score.coherence, score.n) if score else ("", "", "")),
                    *([float(each[-1]) for each in last] or ("", "", "")),
                )
            )
        rmse = f"relative RMSE, layer {self.layers[-1]}"
        head: tuple[str, ...] = (
            "method",
            "trait",
            "coherence",
            "questions",
            rmse,
            "without massive tokens",
            "relative error, median token",
        )
        if self.massive is None:  # nor are the errors of tokens known
            head, rows = head[:-2], [row[:-2] for row in rows]
        about = f"{self.instruction!r} on {len(self.tokens):,} tokens, replacements at α = {self.strengths}"
        return table(head, rows, f"{about}. {self.massive.summary}" if self.massive is not None else about)

    @checks_arguments
    def quantile(self, q: float) -> Float[Tensor, " layer"]:
        """A quantile of ‖Δ_acc‖ over tokens, after each layer.

        Raises:
            InputError: `q` is not from 0 to 1.

        Example:
            >>> bool((comparison.quantile(0.5) <= comparison.quantile(0.99)).all())
            True
        """
        if not 0 <= q <= 1:
            raise InputError("q", repr(q), "a number from 0 to 1")
        # Layer by layer, since torch takes quantiles of at most 2^24 numbers at once.
        return torch.stack([of_layer.quantile(q) for of_layer in self.magnitude.T])

    @checks_arguments
    def with_scores(self, scores: Sequence[Scores], settings: Mapping[str, object] | None = None) -> Comparison:
        """A copy with scores beside the comparison, for tables, plots and reports.

        Args:
            scores: Results of `scores_at`, each method's at its strength in this comparison.
            settings: What a reader needs to run it again, added to the settings so far.

        Raises:
            InputError: a method was scored at another strength than it was compared at; the two would not be of one thing.

        Example:
            >>> few = psr.SamplingConfig(max_new_tokens=8)
            >>> scored = comparison.with_scores([psr.scores_at(model, pairs[:2], pirate, judge, sampling=few)], {"seed": 0})
            >>> scored.scores[0].method, scored.settings
            ('A-PSR', {'seed': 0})
        """
        for index, each in enumerate(scores):
            compared = self.alphas.get(each.method, each.alpha)
            if each.alpha is not None and compared is not None and not math.isclose(each.alpha, compared, rel_tol=1e-6):
                raise InputError(
                    f"scores[{index}]",
                    f"{each.method!r} at strength {each.alpha:g}",
                    f"its strength in this comparison, {compared:g}",
                    f"Compare it at that strength too: `compare(…, alpha={{{each.method!r}: {each.alpha:g}, …}})`.",
                )
        return replace(self, scores=tuple(scores), settings={**self.settings, **(settings or {})})

    @checks_arguments
    def table(self, *, trait: str = "", settings: Mapping[str, object] | None = None) -> ResultTable:
        """The distances from the prompt, one a row; `n` counts responses.

        Metrics, each by layer: `relative RMSE`, `relative RMSE without massive tokens`, and `median relative error`, which is that of the
        median token. `faithfulness` gives the same with intervals.

        Args:
            trait: Name of the trait, as a label of the rows.
            settings: What a reader needs to run it again, added to the comparison's settings.

        Example:
            >>> [row.method for row in comparison.table().select(metric="median relative error", layer=5)]
            ['A-PSR', 'CAA']
        """
        n = len(self.tokens.triplet.unique())
        rows = [
            row for name, each in self.distances.items() for row in each.rows(self.layers, name, n, trait, self.alphas.get(name))
        ]
        about = {"model": dict(self.model), "instruction": self.instruction, "span": self.span}
        return ResultTable(tuple(rows), {**about, **self.settings, **(settings or {})})

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with one row for each method, token and layer; the prompt is the method `prompt`.

        Columns: `method`, `triplet`, `position` (−1 is the last prompt token), `token`, `layer`, `magnitude` (‖Δ‖), `error` (the distance
        from the prompt's Δ; NaN if it is not known), and `massive` (whether the token has a massive activation after the layer; None if
        they were not looked for).

        Raises:
            MissingPackageError: pandas is not installed.

        Example:
            >>> frame = comparison.to_pandas()
            >>> list(frame.columns)[-3:], sorted(set(frame["method"]))
            (['magnitude', 'error', 'massive'], ['A-PSR', 'CAA', 'prompt'])
        """
        pandas = package("pandas", "pandas")
        magnitudes = {PROMPT: self.magnitude, **{name: trace.magnitude for name, trace in self.methods.items()}}
        unknown = torch.full_like(self.magnitude, torch.nan)
        errors = [
            torch.zeros_like(self.magnitude),
            *(unknown if each.error is None else each.error for each in self.methods.values()),
        ]
        tokens, layers = self.magnitude.shape
        massive = [None] * (tokens * layers) if self.massive is None else self.massive.mask(self.tokens).flatten().tolist()
        columns = {
            "method": [name for name in magnitudes for _ in range(tokens * layers)],
            "triplet": self.tokens.triplet.repeat_interleave(layers).repeat(len(magnitudes)).numpy(),
            "position": self.tokens.position.repeat_interleave(layers).repeat(len(magnitudes)).numpy(),
            "token": [string for string in self.tokens.strings for _ in range(layers)] * len(magnitudes),
            "layer": list(self.layers) * (tokens * len(magnitudes)),
            "magnitude": torch.cat([each.flatten() for each in magnitudes.values()]).numpy(),
            "error": torch.cat([each.flatten() for each in errors]).numpy(),
            "massive": massive * len(magnitudes),
        }
        frame: pd.DataFrame = pandas.DataFrame(columns)
        return frame


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
        methods: One replacement or plan, or several by name.
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
    # Of each token only magnitudes are kept; of the prompt's differences, their second moments. No more than one layer's Δ is held.
    rows, moments = Rows(triplets, span), [SecondMoments(int(model.cfg.d_model)) for _ in names]
    errors = {label: torch.zeros(len(names), dtype=torch.double) for label in (*plans, PARAPHRASE)}
    energy = torch.zeros(len(names), dtype=torch.double)
    finder = MassiveFinder(len(names), len(reading.contexts))
    directions: dict[str, Tensor] = {}
    for batch in reading.batches(triplets, token_budget):
        directions = directions or mean_directions(reading, triplets, batch, token_budget)
        take, base = rows.of(batch.indices), batch.base
        magnitudes, components = [], []
        for column, (name, moment) in enumerate(zip(names, moments, strict=True)):
            delta = _moved(batch.prompted, base, name)
            magnitude, component = lengths_of(delta, directions[name])
            magnitudes.append(magnitude)
            components.append(component)
            energy[column] += squares(delta).sum().cpu()
            moment.add(delta)
            for context, unsteered in enumerate(batch.unsteered):
                finder.look(column, context, unsteered.rows[name])
        finder.add(rows.at(batch.indices))
        take(PROMPT, torch.stack(magnitudes, dim=1))
        take(f"{PROMPT}/component", torch.stack(components, dim=1))
        take(f"{PROMPT}/base_norm", torch.stack([base.rows[name].float().norm(dim=1) for name in names], dim=1))
        for rephrased in batch.rephrased:
            squared = _errors(rephrased, batch, names)
            errors[PARAPHRASE] += squared.sum(0)
            take(f"{PARAPHRASE}/error", squared.sqrt().float())
        for steered in reading.steered(batch):
            label, found = steered.label, steered.reading
            squared = _errors(found, batch, names)
            errors[label] += squared.sum(0)
            take(f"{label}/error", squared.sqrt().float())
            lengths = [lengths_of(_moved(found, base, name), directions[name]) for name in names]
            take(f"{label}/magnitude", torch.stack([magnitude for magnitude, _ in lengths], dim=1))
            take(f"{label}/component", torch.stack([component for _, component in lengths], dim=1))
            take(f"{label}/coefficient", torch.stack([site.coefficient for site in steered.sites], dim=1))
            take(f"{label}/projection", torch.stack([site.projection for site in steered.sites], dim=1))
    traces = {
        label: MethodTrace(
            rows.tensors[f"{label}/magnitude"],
            relative_rmse(errors[label], energy).float(),
            tuple(site.layer for site in reading.sites[label]),
            rows.tensors[f"{label}/coefficient"],
            rows.tensors[f"{label}/projection"],
            error=rows.tensors[f"{label}/error"],
            component=rows.tensors[f"{label}/component"],
        )
        for label in plans
    }
    return Comparison(
        triplets[0].pair.instruction,
        fingerprint(model),
        span,
        token_table(model, triplets, span),
        tuple(wanted),
        rows.tensors[PROMPT],
        torch.tensor([_rank1_share(moment) for moment in moments], dtype=torch.float32),
        traces,
        relative_rmse(errors[PARAPHRASE], energy).float() if paraphrases else None,
        alphas,
        paraphrase_error=rows.tensors.get(f"{PARAPHRASE}/error"),
        massive=listed(finder.finish(), model, triplets, span, wanted, reading.contexts),
        base_norm=rows.tensors[f"{PROMPT}/base_norm"],
        component=rows.tensors[f"{PROMPT}/component"],
    )


def _moved(found: BatchReading, base: BatchReading, name: str) -> Float[Tensor, "token d_model"]:
    """What a run changes at a hook point, against the base run."""
    return found.rows[name].float() - base.rows[name].float()


def _errors(found: BatchReading, batch: Batch, names: Sequence[str]) -> Float[Tensor, "token layer"]:
    """‖Δ_AS − Δ_acc‖² of the tokens of a batch, at each hook point, in double precision."""
    each = [squares(_moved(found, batch.base, name) - _moved(batch.prompted, batch.base, name)) for name in names]
    return torch.stack(each, dim=1).cpu()


def _rank1_share(moments: SecondMoments) -> float:
    values, _ = moments.leading(1)
    return float(values[0]) / moments.energy if moments.energy else float("nan")
