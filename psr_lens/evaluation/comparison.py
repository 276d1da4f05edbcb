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
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens._utils.optional import package
from psr_lens.activations.massive_activations import MassiveActivations
from psr_lens.errors import InputError
from psr_lens.evaluation.distance import Distance, distance
from psr_lens.evaluation.methods import PARAPHRASE, PROMPT
from psr_lens.evaluation.scores import Scores
from psr_lens.models.hook_points import layer_of, point_of
from psr_lens.prompts import Span, TokenTable
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
    hooks: tuple[str, ...]
    """Names of the hook points at which it acts, in the order of the layers; none for an adapter."""
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
    fits: tuple[Mapping[str, Any], ...] = ()
    """Settings of the fit of each replacement in it, or of the adapter, as they are recorded; in a sum after its name and its factor."""

    @property
    def site_layers(self) -> tuple[int, ...]:
        """The layer of each hook point at which it acts; a layer appears twice if it acts at two points of it."""
        return tuple(layer_of(name) or 0 for name in self.hooks)

    def site_name(self, site: int) -> str:
        """A hook point by its layer, and by its own name too if it is not the only one of the layer."""
        layer = self.site_layers[site]
        alone = self.site_layers.count(layer) == 1
        return f"layer {layer}" if alone else f"layer {layer}, {point_of(self.hooks[site])}"

    def __repr__(self) -> str:
        """Tokens, layers and hook points in one line."""
        tokens, layers = map(counted, self.magnitude.shape, ("token", "layer"))
        acts = f"acts at layers {', '.join(map(str, self.site_layers))}" if self.site_layers else "changes weights"
        return f"MethodTrace({tokens} × {layers}; {acts})"


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
    """The instruction of the prompt; of several, the first and how many others there are."""
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
    """Share of Δ_acc's energy in its first singular direction, after each layer. A single massive token can hold most of it."""
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
    rank1_share_without_massive: Float[Tensor, " layer"] | None = None
    """`rank1_share` without the tokens that have a massive activation after any layer; None in a result that does not hold it."""

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
            rows.append(
                (
                    name,
                    *((score.trait, score.coherence, score.n) if score else ("", "", "")),
                    *(found.last if found else ("", "", "")),
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
