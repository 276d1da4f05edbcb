"""How faithfully replacements do what the prompt does: to the residual stream, to the next token, and token by token.

Everything is read with the same response tokens forced on every method (Heyman & Vandeputte 2026, section 5 and figure 3), batch by batch:
of each response only sums are kept, and logits never for more than one batch. The yardstick is the same instruction in other words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from psr_lens._utils.html_table import table
from psr_lens._utils.progress import progress_bar
from psr_lens.activations.batches import length_batches
from psr_lens.activations.paired_passes import TOKEN_BUDGET, row_counts
from psr_lens.activations.teacher_forced_pass import Steered, logits_budget, read_batch
from psr_lens.errors import InputError
from psr_lens.evaluation.acting_sites import ActingSite, positions
from psr_lens.evaluation.faithfulness_sums import Closeness, ClosenessSums, SiteFaithfulness, SiteSums
from psr_lens.evaluation.methods import NONE, PARAPHRASE, PROMPT, checked_plans, strengths
from psr_lens.models import HookedModel, device_of, fingerprint
from psr_lens.models.hook_points import check_layers
from psr_lens.prompts import Span, Triplet, check_triplets, rephrase
from psr_lens.replacement import Replacement, SteeringPlan
from psr_lens.results.resampling import Estimate
from psr_lens.results.table import NO_INTERVAL, Result, ResultTable

HELD_OUT_PARAPHRASE: Final = "held-out paraphrase"
"""The block under which the table has what replacements share with paraphrases that they were not fitted on."""


@dataclass(frozen=True)
class BlockFaithfulness:
    """One kind of questions."""

    responses: int
    """How many."""
    methods: Mapping[str, Closeness]
    """To the prompt's own instruction: `none`, the replacements, and `paraphrase`, the yardstick, if any was given."""
    paraphrased: Mapping[str, Closeness]
    """To the paraphrases, which nothing was fitted on: `none`, the replacements, and `prompt`, the instruction itself; else empty."""
    sites: Mapping[str, tuple[SiteFaithfulness, ...]]
    """The hook points of each replacement, by layer."""


@dataclass(frozen=True)
class Faithfulness:
    """A prompt and its replacements on the same response tokens; every number comes with an interval over responses."""

    instruction: str
    """The instruction of the prompt; the first, where there are several."""
    paraphrases: tuple[str, ...]
    """The same in other words."""
    model: Mapping[str, object]
    """Fingerprint of the model."""
    span: Span
    """Which tokens of the residual stream were compared."""
    layers: tuple[int, ...]
    """The layers after which it was."""
    alphas: Mapping[str, float]
    """Strength of each replacement."""
    blocks: Mapping[str, BlockFaithfulness]
    """By kind of questions; `""` is the triplets themselves."""
    trait: str = ""
    """Name of the trait, for the table."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What is needed to run it again."""

    def _repr_html_(self) -> str:
        last = f"relative RMSE, layer {self.layers[-1]}"
        rows = [
            (
                name,
                method,
                *(float(each.value) for each in (found.divergence, found.divergence_removed(block.methods[NONE]), found.agreement)),
                float(found.relative_rmse.value[-1]),
            )
            for name, block in self.blocks.items()
            for method, found in block.methods.items()
        ]
        head = ("questions", "method", "KL", "KL removed", "top-1 agreement", last)
        return table(head, rows, f"{self.instruction!r} on {self.blocks[''].responses} responses; all numbers are in `.table()`")

    def table(self) -> ResultTable:
        """All numbers, one a row; `n` counts responses.

        Metrics: `KL` (nats), `KL removed`, `top-1 agreement`; by layer `relative RMSE`, `explained energy`, `Pearson`, `Spearman`,
        `share of Δ in span`, `ceiling`, `filled`. What is compared with the paraphrases stands in the block `held-out paraphrase`.
        """
        rows: list[Result] = []
        for name, block in self.blocks.items():
            rows += self._closeness(block.methods, name)
            rows += self._closeness(block.paraphrased, f"{name}, {HELD_OUT_PARAPHRASE}" if name else HELD_OUT_PARAPHRASE)
            for method, sites in block.sites.items():
                rows += [row for site in sites for row in self._site(site, sites, method, name)]
        about = {
            "model": dict(self.model),
            "instruction": self.instruction,
            "paraphrases": list(self.paraphrases),
            "span": self.span,
        }
        return ResultTable(tuple(rows), {**about, **self.settings})

    def _closeness(self, methods: Mapping[str, Closeness], block: str) -> list[Result]:
        rows = []
        for method, found in methods.items():
            single = {
                "KL": found.divergence,
                "KL removed": found.divergence_removed(methods[NONE]),
                "top-1 agreement": found.agreement,
            }
            rows += [self._row(method, metric, value, block) for metric, value in single.items()]
            for metric, values in {"relative RMSE": found.relative_rmse, "explained energy": found.explained}.items():
                rows += [self._row(method, metric, values, block, layer, at) for at, layer in enumerate(self.layers)]
        return rows

    def _site(self, site: SiteFaithfulness, all_of: Sequence[SiteFaithfulness], method: str, block: str) -> list[Result]:
        # Where a replacement acts at two points of one layer, the point's own name tells the two apart.
        shared = sum(each.layer == site.layer for each in all_of) > 1
        at = f" at {site.hook.partition('.')[2].partition('.')[2]}" if shared else ""
        found = {
            "Pearson": site.pearson,
            "Spearman": site.spearman,
            "share of Δ in span": site.share_in_span,
            "ceiling": site.ceiling,
            "filled": site.filled,
        }
        return [self._row(method, metric + at, value, block, site.layer) for metric, value in found.items()]

    def _row(self, method: str, metric: str, found: Estimate, block: str, layer: int | None = None, *at: int) -> Result:
        interval = found.interval(*at) if np.isfinite(found.low[at]) else NO_INTERVAL
        return Result(method, metric, float(found.value[at]), found.n, interval, self.trait, block, self.alphas.get(method), layer)


def faithfulness(
    model: HookedModel,
    triplets: Sequence[Triplet],
    methods: Mapping[str, Replacement | SteeringPlan],
    *,
    paraphrases: str | Sequence[str] = (),
    blocks: Mapping[str, Sequence[Triplet]] | None = None,
    layers: str | int | Sequence[int] = "all",
    span: Span = "R",
    alpha: float | Mapping[str, float] = 1.0,
    trait: str = "",
    settings: Mapping[str, object] | None = None,
    token_budget: int = TOKEN_BUDGET,
) -> Faithfulness:
    """Read the same responses under the prompt and under each replacement, and measure how far apart they are.

    Args:
        model: The model; left as it was.
        triplets: Responses to compare on, best ones that nothing was fitted on.
        methods: Names and replacements, or plans of several.
        paraphrases: The instruction in other words, once or several times: the yardstick, and a prompt that nothing was fitted on. What is
            measured against several is pooled.
        blocks: More triplets by name, such as other kinds of questions than the replacements were fitted on.
        layers: Layers after which the residual stream is compared.
        span: Which tokens of it. The next token is always compared for all response tokens, and for those alone.
        alpha: Strength of the replacements, one for all or one for each by name.
        trait: Name of the trait, for the table.
        settings: Anything that a reader needs to run it again.
        token_budget: Most tokens in a batch, padding included; fewer where the vocabulary is large, so that logits take 2 GiB at most.

    Returns:
        A typed result, with `.table()`.

    Raises:
        InputError: no triplets, no replacements, a reserved name, a paraphrase that is the instruction, a layer out of range.
        ArtifactError: a replacement was made for another model.
    """
    plans = checked_plans(model, methods, (NONE, PROMPT, PARAPHRASE))
    alphas = strengths(alpha, list(plans))
    texts = (paraphrases,) if isinstance(paraphrases, str) else tuple(paraphrases)
    wanted = check_layers(model, layers)
    if blocks and "" in blocks:
        raise InputError("blocks", "a block without a name", "names", "The triplets themselves are the block without one.")
    asked = {"": list(triplets), **{name: list(each) for name, each in (blocks or {}).items()}}
    for chosen in asked.values():
        check_triplets(model, chosen)
        if same := {each.pair.instruction for each in chosen} & set(texts):
            raise InputError("paraphrases", repr(same.pop()), "other words than the instruction's own")
    names = [f"blocks.{layer}.hook_resid_post" for layer in wanted]
    found = {}
    for name, chosen in asked.items():
        others = [rephrase(model, chosen, text) for text in texts]
        budget = logits_budget(model, token_budget, 3 + len(others))
        found[name] = _block(model, chosen, others, plans, alphas, names, span, budget)
    return Faithfulness(
        asked[""][0].pair.instruction, texts, fingerprint(model), span, tuple(wanted), alphas, found, trait, settings or {}
    )


def _block(
    model: HookedModel,
    triplets: Sequence[Triplet],
    others: Sequence[Sequence[Triplet]],
    plans: Mapping[str, SteeringPlan],
    alphas: Mapping[str, float],
    names: Sequence[str],
    span: Span,
    token_budget: int,
) -> BlockFaithfulness:
    """Measure one kind of questions; `others` are the same triplets under each paraphrase."""
    if any(row_counts(other, span) != row_counts(triplets, span) for other in others):
        raise InputError("span", repr(span), "'R', since a paraphrase changes how the question is split into tokens")
    sites = {label: ActingSite.all_of(plan, device_of(model)) for label, plan in plans.items()}
    every = list(dict.fromkeys([*names, *(site.name for at in sites.values() for site in at)]))
    close = {label: ClosenessSums(names, len(triplets)) for label in (NONE, *plans, *([PARAPHRASE] if others else []))}
    away = {label: ClosenessSums(names, len(triplets)) for label in (NONE, *plans, PROMPT)} if others else {}
    at_sites = {label: [SiteSums(site, len(triplets)) for site in at] for label, at in sites.items()}
    for indices in progress_bar(list(length_batches(triplets, token_budget)), desc="compare", unit="batch"):
        chosen = [triplets[index] for index in indices]
        position = positions(chosen, span)
        base = read_batch(model, chosen, every, "base", span, logits=True)
        prompted = read_batch(model, chosen, every, "prompted", span, logits=True)
        rephrased = [
            read_batch(model, [other[index] for index in indices], names, "prompted", span, logits=True) for other in others
        ]
        close[NONE].add(indices, chosen, span, base, base, prompted)
        for target in rephrased:
            close[PARAPHRASE].add(indices, chosen, span, target, base, prompted)
            away[NONE].add(indices, chosen, span, base, base, target)
            away[PROMPT].add(indices, chosen, span, prompted, base, target)
        for label, plan in plans.items():
            steered = read_batch(
                model,
                chosen,
                names,
                "base",
                span,
                steered=Steered(plan, alphas[label], [site.name for site in sites[label]]),
                logits=True,
            )
            close[label].add(indices, chosen, span, steered, base, prompted)
            for target in rephrased:
                away[label].add(indices, chosen, span, steered, base, target)
            for sums in at_sites[label]:
                name = sums.site.name
                reading = sums.site.read(steered.arriving[name], prompted.rows[name], position, alphas[label])
                sums.add(indices, chosen, span, reading, prompted.rows[name].float() - base.rows[name].float())
    return BlockFaithfulness(
        len(triplets),
        {label: sums.finish() for label, sums in close.items()},
        {label: sums.finish() for label, sums in away.items()},
        {label: tuple(sums.finish() for sums in at) for label, at in at_sites.items()},
    )
