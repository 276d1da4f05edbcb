"""How faithfully replacements do what the prompt does, as `faithfulness` returns it; every number has an interval over responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.html_table import table
from psr_lens._utils.numbers import counted
from psr_lens.activations.massive_activations import MassiveActivations
from psr_lens.evaluation.distance import METRICS
from psr_lens.evaluation.methods import NONE
from psr_lens.prompts import Span
from psr_lens.results.bootstrap import Estimate, estimate, ratio
from psr_lens.results.correlation import pearson, spearman
from psr_lens.results.medians import median
from psr_lens.results.result import Result
from psr_lens.results.table import ResultTable

WITHOUT: Final = " without massive tokens"
"""What stands behind the name of a metric that leaves massive tokens out."""

HELD_OUT_PARAPHRASE: Final = "held-out paraphrase"
"""The block in the table for comparisons with the paraphrases, which the replacements were not fitted on."""


@dataclass(frozen=True, eq=False, repr=False)
class Closeness:
    """How close one method comes to the prompt, in sums over the tokens of each response; a few tokens can decide sums of squares."""

    error: Float[np.ndarray, "response layer"]
    """Σ ‖Δ_method − Δ_acc‖² after each layer; Δ_acc is the prompt's."""
    energy: Float[np.ndarray, "response layer"]
    """Σ ‖Δ_acc‖² after each layer."""
    kl: Float[np.ndarray, " response"]
    """Σ KL(prompted ‖ method) of the next-token distributions, in nats."""
    agreed: Float[np.ndarray, " response"]
    """Number of next-token distributions with the same most likely token as the prompted one."""
    predicted: Float[np.ndarray, " response"]
    """Number of next-token distributions: one for each response token, the first of which the last prompt token predicts."""
    error_without_massive: Float[np.ndarray, "response layer"]
    """`error` without the tokens that are massive after any of the layers in any unsteered context."""
    energy_without_massive: Float[np.ndarray, "response layer"]
    """`energy` without them."""
    relative_error: Float[np.ndarray, "token layer"]
    """‖Δ_method − Δ_acc‖ / ‖Δ_acc‖ of each token, in no order; NaN where Δ_acc is 0."""
    response: Int[np.ndarray, " token"]
    """Index of the response that each token belongs to."""

    def __repr__(self) -> str:
        """KL and agreement in one line."""
        return f"Closeness(KL {self.divergence.value:.3g}, top-1 agreement {self.agreement.value:.3g}; {counted(len(self.kl), 'response')})"

    @cached_property
    def relative_rmse(self) -> Estimate:
        """‖Δ_method − Δ_acc‖ / ‖Δ_acc‖ after each layer; 0 is the prompt, 1 no steering."""
        squared = ratio(self.error, self.energy)
        return estimate(lambda weights: np.sqrt(squared(weights)), len(self.error))

    @cached_property
    def rmse_without_massive(self) -> Estimate:
        """Relative RMSE without the tokens that are massive after any of the layers, in any unsteered context."""
        squared = ratio(self.error_without_massive, self.energy_without_massive)
        return estimate(lambda weights: np.sqrt(squared(weights)), len(self.error))

    @cached_property
    def median_error(self) -> Estimate:
        """Relative error of the median token after each layer; 0 is the prompt, 1 no steering. No few tokens can decide it."""
        return median(self.relative_error, self.response, len(self.error))

    @cached_property
    def explained(self) -> Estimate:
        """1 − relative RMSE² after each layer: the share of Δ_acc's energy that the method accounts for; below 0 it adds error."""
        squared = ratio(self.error, self.energy)
        return estimate(lambda weights: 1 - squared(weights), len(self.error))

    @cached_property
    def explained_without_massive(self) -> Estimate:
        """The same without the tokens that are massive after any of the layers, in any unsteered context."""
        squared = ratio(self.error_without_massive, self.energy_without_massive)
        return estimate(lambda weights: 1 - squared(weights), len(self.error))

    @cached_property
    def divergence(self) -> Estimate:
        """Mean KL(prompted ‖ method) of the next token, in nats."""
        return estimate(ratio(self.kl, self.predicted), len(self.kl))

    @cached_property
    def agreement(self) -> Estimate:
        """Share of response tokens at which both find the same token most likely, 0–1."""
        return estimate(ratio(self.agreed, self.predicted), len(self.kl))

    def divergence_removed(self, unsteered: Closeness) -> Estimate:
        """1 − KL / KL without steering: the share of the prompt's effect on the next token that is reproduced; below 0 KL grows."""
        left = ratio(self.kl, unsteered.kl)
        return estimate(lambda weights: 1 - left(weights), len(self.kl))


@dataclass(frozen=True, eq=False, repr=False)
class SiteFaithfulness:
    """One hook point of a replacement: do its coefficients follow what the prompt calls for, and how much can its directions reach?

    What is `missing` when an activation arrives is prompted − arriving: Δ_acc itself at the first hook point, and at later ones what
    remains after the earlier sites.
    """

    hook: str
    """The hook point."""
    layer: int
    """Its layer."""
    rank: int
    """Dimensions of the span of the directions, over all heads."""
    response: Int[np.ndarray, " token"]
    """Index of the response that each token belongs to; only tokens on which the replacement acts."""
    coefficient: Float[np.ndarray, " token"]
    """Length of what is added, in the activation's units; signed if there is a single direction."""
    projection: Float[np.ndarray, " token"]
    """Length of what is missing within the span of the directions; signed if there is a single direction."""
    delta: Float[np.ndarray, " response"]
    """Σ ‖Δ_acc‖² at the hook point."""
    delta_within: Float[np.ndarray, " response"]
    """Σ ‖Δ_acc‖² within the span of the directions."""
    missing: Float[np.ndarray, " response"]
    """Σ ‖missing‖²."""
    within: Float[np.ndarray, " response"]
    """Σ ‖missing‖² within the span of the directions."""
    left: Float[np.ndarray, " response"]
    """Σ ‖missing − added‖²."""
    without_massive: SiteFaithfulness | None = None
    """The same without the tokens that are massive after any of the layers, in any unsteered context; None within itself."""

    def __repr__(self) -> str:
        """Hook point, rank and size in one line."""
        size = f"{counted(len(self.response), 'token')} of {counted(len(self.delta), 'response')}"
        return f"SiteFaithfulness({self.hook!r}, rank {self.rank}; {size})"

    @cached_property
    def pearson(self) -> Estimate:
        """Correlation of coefficient and projection over tokens; NaN if either is the same on all tokens, as a constant's is."""
        return pearson(self.coefficient, self.projection, self.response, len(self.delta))

    @cached_property
    def spearman(self) -> Estimate:
        """Rank correlation of coefficient and projection over tokens; NaN as for `pearson`."""
        return spearman(self.coefficient, self.projection, self.response, len(self.delta))

    @cached_property
    def share_in_span(self) -> Estimate:
        """Share of Δ_acc's energy in the span of the directions."""
        return estimate(ratio(self.delta_within, self.delta), len(self.delta))

    @cached_property
    def ceiling(self) -> Estimate:
        """Share of what is missing that lies in the span of the directions: the most that perfect coefficients could fill."""
        return estimate(ratio(self.within, self.missing), len(self.delta))

    @cached_property
    def filled(self) -> Estimate:
        """Share of what is missing that the hook point adds; at most the ceiling, negative if it makes the match worse."""
        left = ratio(self.left, self.missing)
        return estimate(lambda weights: 1 - left(weights), len(self.delta))


@dataclass(frozen=True, eq=False, repr=False)
class BlockFaithfulness:
    """Faithfulness on one kind of questions."""

    responses: int
    """Number of responses."""
    methods: Mapping[str, Closeness]
    """Closeness to the prompt: of `none`, of each replacement, and of `paraphrase`, the paraphrase baseline, if any was given."""
    paraphrased: Mapping[str, Closeness]
    """Closeness to the paraphrases, which nothing was fitted on: of `none`, of each replacement, and of `prompt`; empty without any."""
    sites: Mapping[str, tuple[SiteFaithfulness, ...]]
    """The hook points of each replacement, by layer."""
    massive: MassiveActivations | None = None
    """The tokens with massive activations under the base prompt, the prompt or a paraphrase; None if they were not looked for."""

    def __repr__(self) -> str:
        """Responses and methods in one line."""
        return f"BlockFaithfulness({counted(self.responses, 'response')}; methods: {', '.join(self.methods)})"


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness:
    """A prompt and its replacements on the same response tokens; every number comes with an interval over responses.

    Example:
        >>> found = psr.faithfulness(model, triplets[:4], {"A-PSR": pirate})
        >>> found.blocks[""].methods["A-PSR"].relative_rmse.value.shape
        (6,)
    """

    instruction: str
    """The instruction of the prompt; of several, the first and how many others there are."""
    paraphrases: tuple[str, ...]
    """The instruction in other words."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    span: Span
    """Which tokens of the residual stream were compared."""
    layers: tuple[int, ...]
    """The layers after which the residual stream was compared."""
    alphas: Mapping[str, float]
    """Strength of each replacement."""
    blocks: Mapping[str, BlockFaithfulness]
    """Kind of questions to what was measured on them; `""` if only one kind was given."""

    def __repr__(self) -> str:
        """Instruction, questions and methods in one line."""
        responses = sum(block.responses for block in self.blocks.values())
        kinds = ", ".join(filter(None, self.blocks))
        of = f" ({kinds})" if kinds else ""
        size = f"{counted(responses, 'response')}{of}, span {self.span}"
        return f"Faithfulness({self.instruction!r}, {size}; methods: {', '.join(self.alphas)})"

    def _repr_html_(self) -> str:
        last = f"relative RMSE, layer {self.layers[-1]}"
        distances = (last, "without massive tokens", "relative error, median token")
        rows = [
            (
                name,
                method,
                *(float(each.value) for each in (found.divergence, found.divergence_removed(block.methods[NONE]), found.agreement)),
                *(float(each.value[-1]) for each in (found.relative_rmse, found.rmse_without_massive, found.median_error)),
            )
            for name, block in self.blocks.items()
            for method, found in block.methods.items()
        ]
        head = ("questions", "method", "KL", "KL removed", "top-1 agreement", *distances)
        responses = ", ".join(f"{block.responses} {name}".strip() for name, block in self.blocks.items())
        return table(head, rows, f"{self.instruction!r} on responses: {responses}; all numbers are in `.table()`")

    @checks_arguments
    def table(self, *, trait: str = "", settings: Mapping[str, object] | None = None) -> ResultTable:
        """All numbers, one per row; `n` counts responses.

        Metrics: `KL` (nats), `KL removed`, `top-1 agreement`; by layer `relative RMSE`, `relative RMSE without massive tokens`,
        `median relative error` (that of the median token), `explained energy`, `Pearson`, `Spearman`, `share of Δ in span`, `ceiling`,
        `filled`, the last six also with `without massive tokens` behind their name. KL and agreement have no such version: each next token
        counts once there, whatever the size of activations. Comparisons with the paraphrases are in the block `held-out paraphrase`.

        Args:
            trait: Name of the trait, as a label of the rows.
            settings: What a reader needs to run it again, added to the table's settings.

        Example:
            >>> table = psr.faithfulness(model, triplets[:4], {"A-PSR": pirate}).table(trait="pirate")
            >>> [row.method for row in table.select(metric="KL")], {row.trait for row in table}
            (['none', 'A-PSR'], {'pirate'})
        """
        rows = [row for name, block in self.blocks.items() for row in _Rows(self, name, trait).of(block)]
        about = {
            "model": dict(self.model),
            "instruction": self.instruction,
            "paraphrases": list(self.paraphrases),
            "span": self.span,
        }
        return ResultTable(tuple(rows), {**about, **(settings or {})})


@dataclass(frozen=True)
class _Rows:
    """Makes the rows of one kind of questions."""

    result: Faithfulness
    name: str
    trait: str

    def of(self, block: BlockFaithfulness) -> list[Result]:
        held_out = f"{self.name}, {HELD_OUT_PARAPHRASE}" if self.name else HELD_OUT_PARAPHRASE
        rows = self._closeness(block.methods)
        rows += _Rows(self.result, held_out, self.trait)._closeness(block.paraphrased)
        return rows + [row for method, sites in block.sites.items() for site in sites for row in self._site(site, sites, method)]

    def _closeness(self, methods: Mapping[str, Closeness]) -> list[Result]:
        rows = []
        for method, found in methods.items():
            single = {
                "KL": found.divergence,
                "KL removed": found.divergence_removed(methods[NONE]),
                "top-1 agreement": found.agreement,
            }
            rows += [self._row(method, metric, value) for metric, value in single.items()]
            layered = zip(METRICS, (found.relative_rmse, found.rmse_without_massive, found.median_error), strict=True)
            energies = ("explained energy", found.explained), (f"explained energy{WITHOUT}", found.explained_without_massive)
            for metric, values in (*layered, *energies):
                rows += [self._row(method, metric, values, layer, column) for column, layer in enumerate(self.result.layers)]
        return rows

    def _site(self, site: SiteFaithfulness, sites: Sequence[SiteFaithfulness], method: str) -> list[Result]:
        # Where a replacement acts at two points of one layer, the point's own name tells the two apart.
        shared = sum(each.layer == site.layer for each in sites) > 1
        at = f" at {site.hook.partition('.')[2].partition('.')[2]}" if shared else ""
        rows = []
        for each, without in ((site, ""), (site.without_massive, WITHOUT)):
            found = {} if each is None else _metrics(each)
            rows += [self._row(method, metric + without + at, value, site.layer) for metric, value in found.items()]
        return rows

    def _row(self, method: str, metric: str, found: Estimate, layer: int | None = None, *column: int) -> Result:
        value, interval = float(found.value[column]), found.interval(*column)
        return Result(method, metric, value, found.n, interval, self.trait, self.name, self.result.alphas.get(method), layer)


def _metrics(site: SiteFaithfulness) -> dict[str, Estimate]:
    return {
        "Pearson": site.pearson,
        "Spearman": site.spearman,
        "share of Δ in span": site.share_in_span,
        "ceiling": site.ceiling,
        "filled": site.filled,
    }
