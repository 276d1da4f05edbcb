"""The figures of further results in a report: `_FURTHER` has one entry per type of result, with its heading on the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import numpy as np

from psr_lens import plots
from psr_lens._utils.arguments import described
from psr_lens._utils.short_text import shortened
from psr_lens.activations.capture import Captured
from psr_lens.activations.statistics import CapturedStatistics
from psr_lens.errors import InputError
from psr_lens.evaluation.answers_by_method import AnswersByMethod
from psr_lens.evaluation.collateral import Collateral
from psr_lens.evaluation.comparison import MethodTrace
from psr_lens.evaluation.evaluation_result import Evaluation
from psr_lens.evaluation.faithfulness_result import Faithfulness, SiteFaithfulness
from psr_lens.evaluation.reach_result import Reach
from psr_lens.interpretation.attribution import Attribution, ScoreAttribution
from psr_lens.interpretation.directions import Cosines, LogitLens, TopTokens
from psr_lens.interpretation.patching import FrozenAttention, PatchGrid
from psr_lens.models.hook_points import layer_of
from psr_lens.replacement import LearningCurve, Replacement
from psr_lens.reporting.answer_blocks import answer_blocks
from psr_lens.reporting.parts import Answers, Choice, Panel, Part, choice, merged
from psr_lens.results.table import ResultTable
from psr_lens.transfer import Agreement, GateReading

Blocks = tuple[Panel | Choice | Answers, ...]

ANSWERS: Final = "Answers side by side"
"""Heading of the part that comes first."""
_SAME: Final = 0.01
"""Relative difference up to which coefficients are the same, measured twice: those of a model in bfloat16 depend on the batch."""


def further_parts(results: Iterable[object], cells: int, with_correlations: Mapping[str, MethodTrace] | None = None) -> list[Part]:
    """The parts of the page for further results, in the order of the page; results of the same type are in one part.

    Args:
        results: Results of the types in `RESULTS`.
        cells: Most heatmap cells in all.
        with_correlations: Methods whose coefficients' correlations stand elsewhere in the section: a figure of the same coefficients
            alone is left out.

    Raises:
        InputError: a result of a type that has no figures.
    """
    results = list(results)
    kinds = list(_FURTHER)
    found = []
    for index, result in enumerate(results):
        kind = next((each for each in kinds if isinstance(result, each)), None)
        if kind is None:
            known = ", ".join(each.__name__ for each in kinds)
            raise InputError(f"also[{index}]", described(result), f"one of {known}")
        found.append((kinds.index(kind), result))
    share = cells // max(1, len(results))
    made = []
    for number, (kind_at, result) in enumerate(sorted(found, key=lambda each: each[0])):
        title, blocks = _FURTHER[kinds[kind_at]]
        figures = tuple(replace(each, result=number) if isinstance(each, Answers) else each for each in blocks(result, share))
        if isinstance(result, Faithfulness) and _repeats(result, with_correlations or {}):
            figures = tuple(each for each in figures if not (isinstance(each, Panel) and each.name == "coefficient_correlation"))
        made.append(Part(title, figures))
    return merged(made)


def _repeats(result: Faithfulness, with_correlations: Mapping[str, MethodTrace]) -> bool:
    """Whether the correlations of a result's only block stand elsewhere: of the same coefficients, not just of methods of the same name."""
    if len(result.blocks) != 1:
        return False
    (found,) = result.blocks.values()
    varying = [name for name, sites in found.sites.items() if any(math.isfinite(site.pearson.value) for site in sites)]
    return all(name in with_correlations and _are_of(found.sites[name], with_correlations[name]) for name in varying)


def _are_of(sites: Sequence[SiteFaithfulness], trace: MethodTrace) -> bool:
    """Whether the coefficients at some hook points, applied and called for, are those of a comparison's method, token by token."""
    if tuple(site.layer for site in sites) != trace.site_layers:
        return False
    pairs = [
        (measured, compared[:, column].double().numpy())
        for column, site in enumerate(sites)
        for measured, compared in ((site.coefficient, trace.coefficient), (site.projection, trace.projection))
    ]
    return all(
        one.shape == other.shape and float(np.linalg.norm(one - other)) <= _SAME * float(np.linalg.norm(other))
        for one, other in pairs
    )


def _answers(result: AnswersByMethod, cells: int) -> Blocks:
    return answer_blocks(result)


def _captured(captured: Captured, cells: int) -> Blocks:
    kinds = [
        kind for kind in ("attn_out", "mlp_out", "resid_post") if any(name.endswith(f"hook_{kind}") for name in captured.deltas)
    ]
    layers = len({layer_of(name) for name in captured.deltas})
    what = "How much each layer adds because of the prompt" if captured.difference == "local" else "How much the prompt changes"

    def of_response(triplet: int, max_tokens: int) -> tuple[Panel, ...]:
        caption = (
            f"{what}, at the outputs of attention and MLP and in the residual stream, to which both add. Rows are tokens, columns are "
            "layers. Buttons change the unit, as in the heatmap of prompt and replacements."
        )
        chosen = kinds or ("attn_out", "mlp_out", "resid_post")
        return (Panel("magnitude_by_kind", plots.magnitude_by_kind(captured, triplet, chosen, max_tokens=max_tokens), caption),)

    return (choice(captured.tokens, max(1, len(kinds)), layers, cells, of_response),)


def _statistics(statistics: CapturedStatistics, cells: int) -> Blocks:
    stream = [name for name in statistics.overall if name.endswith("hook_resid_post")]
    return (
        Panel(
            "magnitude_distribution",
            plots.magnitude_distribution(statistics),
            "How hard the prompt pushes tokens at each kind of hook point: the median token, and bands of the middle half and of "
            "the middle 98\N{NO-BREAK SPACE}% of tokens. A wide band means that it pushes a few tokens much harder than the rest.",
        ),
        Panel(
            "rank_energy",
            plots.rank_energy(statistics, stream or None),
            "The share of the prompt’s effect in its first singular directions, over all tokens. If a line starts high, one direction "
            "with a coefficient for each token is almost enough.",
        ),
    )


def _evaluation(result: Evaluation | ResultTable, cells: int) -> Blocks:
    return (
        Panel(
            "pareto",
            plots.pareto(result),
            "A point is a method at one strength α; a line connects a method’s strengths in order. Up and to the right is better. The star "
            "is the prompt, the grey circle the unsteered model.",
        ),
    )


def _faithfulness(result: Faithfulness, cells: int) -> Blocks:
    panels: list[Panel] = []
    for block in result.blocks:
        panels += [
            Panel(
                "next_token",
                plots.next_token(result, block),
                "Above, the distance of the next-token distribution from that of the prompted model; further left is closer. Below, how "
                "often both have the same most likely token. Bars are 95 % intervals over responses.",
            ),
            Panel(
                "coefficient_correlation",
                plots.coefficient_correlation(result, block),
                "Whether the coefficient that a replacement applies to each token follows the one that the prompt calls for: 1 is perfect "
                "correlation, 0 is none.",
            ),
            Panel(
                "explained_energy",
                plots.explained_energy(result, block),
                "Above, the share of the prompt’s effect that is reproduced after each layer. Below, of the effect still missing at each "
                "site, the share that the site fills in, and (dotted) the most that its directions could fill in.",
            ),
        ]
    return tuple(panels)


def _reach(result: Reach, cells: int) -> Blocks:
    caption = (
        "How far activations are from the nearest one that a prompt leads to on another question. Above, the median token, where 1 is as "
        "far as the prompt’s own; below, the share of tokens farther away than 95 % of the prompt’s. Shifts that are small beside the "
        "distance between references do not show."
    )
    return (Panel("reach", plots.reach(result), caption),)


def _collateral(result: Collateral, cells: int) -> Blocks:
    over = f" Over the limit of {result.dose_limit:g}: {', '.join(result.overdosed)}." if result.overdosed else ""
    if not result.doses:  # adapters add to none
        return ()
    caption = (
        "How much each method adds to an activation, relative to the activation itself, on its own answers. At 1, what is added is as "
        f"large as the activation.{over}"
    )
    return (Panel("relative_dose", plots.relative_dose(result), caption),)


def _attribution(result: Attribution, cells: int) -> Blocks:
    heads = min(4, len(result.layers) * result.share.heads.shape[2])
    most = ", ".join(map(str, result.top_heads(heads)))
    blocks: list[Panel | Choice] = [
        Panel(
            "head_map",
            plots.head_map(result),
            f"The share of Δ that each head reads from the instruction’s tokens; below 0, a head works against Δ. Largest: {most}. What a "
            "later MLP passes on counts as MLP.",
        ),
        Panel(
            "parts_by_layer",
            plots.parts_by_layer(result),
            "The parts of Δ, as exact shares: those of a layer sum to 1. Parts below 0 work against Δ.",
        ),
    ]
    if result.sources is not None:
        read = [triplet for triplet, words in enumerate(result.sources.strings) if words]
        blocks += [
            Panel(
                "source_map",
                plots.source_map(result, triplet),
                "Which tokens of the instruction are read at which layer, over all heads, on the first response.",
            )
            for triplet in read[:1]
        ]
    return tuple(blocks)


def _scores(result: ScoreAttribution, cells: int) -> Blocks:
    caption = (
        "Attention scores with the instruction’s tokens, less those with other tokens, by what the queries are made of: in the prompted "
        "run, in the base run, and in the base run steered with each method. The keys are those of the prompted run throughout."
    )
    return (Panel("score_parts", plots.score_parts(result), caption),)


def _frozen(result: FrozenAttention, cells: int) -> Blocks:
    caption = (
        "How much of the prompt’s effect on the next tokens is left when attention looks only where it looks without instruction and "
        "steering. What is lost came from looking elsewhere; what is left comes from what is read where attention looks anyway."
    )
    return (Panel("frozen_attention", plots.frozen_attention(result), caption),)


def _patching(grid: PatchGrid, cells: int) -> Blocks:
    whose = "prompt’s" if grid.reference == "prompt" else "replacement’s"
    does = "each cell alone brings into the base run" if grid.measured == "recovered" else "is lost without each cell"
    caption = (
        f"The share of the {whose} effect that {does}, measured by KL divergence: 0 is nothing, 1 is all. Cells do not sum to 1."
    )
    mean = Panel("patch_map", plots.patch_map(grid, None), f"{caption} Mean over all responses.")
    if grid.cells == "all":
        return (mean,)

    def of_response(triplet: int, max_tokens: int) -> tuple[Panel, ...]:
        return (Panel("patch_map", plots.patch_map(grid, triplet, max_tokens=max_tokens), caption),)

    by_response = choice(grid.tokens, 1, len(grid.layers), cells, of_response)
    return (mean, by_response) if len(grid.tokens.triplet.unique()) > 1 else (by_response,)


def _agreement(result: Agreement, cells: int) -> Blocks:
    caption = (
        "Whether the instruction pushes the same tokens in both models, for every pair of layers: 1 is perfect correlation of log ‖Δ‖, 0 "
        "is none. The outline is the best matching of layers."
    )
    panels = [Panel("agreement", plots.agreement(result), caption)]
    whose: tuple[tuple[Literal["gates", "back"], GateReading | None, str, str], ...] = (
        ("gates", result.gates, "first", "other"),
        ("back", result.back, "other", "first"),
    )
    for show, reading, of, reader in whose:
        if reading is not None:
            control = float(reading.control_mean().value)
            said = (
                f"The share of what the {of} model’s replacement adds that can be read from the {reader} model’s activations, on texts "
                f"held out: 1 is all of it, 0 is a constant. Shuffled over tokens it is {control:.2f}."
            )
            panels.append(Panel(f"agreement_{show}", plots.agreement(result, show), said))
    if result.gates is not None:
        strips = "What the replacement adds at each token of one text, and below it what the other model’s activations say of that."
        panels.append(Panel("gates_by_family", plots.gates_by_family(result), strips))
    return tuple(panels)


def _lens(lens: LogitLens, cells: int) -> Blocks:
    what = "direction that is added" if lens.part == "directions" else "probe (key side), with which the coefficient is read"
    through = "the model’s own unembedding" if lens.lens == "logit" else "the later layers (Jacobian lens) and the unembedding"
    caption = f"Each {what}, read through {through}: the tokens that it makes more likely, and less likely."
    return (Panel("logit_lens", plots.logit_lens(lens, columns=2), caption),)


def _top_tokens(found: TopTokens, cells: int) -> Blocks:
    caption = (
        "The tokens that are pushed hardest, a row for each distinct token. A dot is the coefficient at one place; the sentence is that of "
        "the largest."
    )
    return (Panel("top_tokens", plots.top_tokens(found), caption),)


def _cosines(found: Cosines, cells: int) -> Blocks:
    caption = (
        "Cosine similarity of directions: 1 is the same direction, 0 is orthogonal, −1 is opposite. Blocks are methods; rows and columns "
        "within them are layers."
    )
    return (Panel("cosine_matrix", plots.cosine_matrix(found), caption),)


def _curve(found: LearningCurve | Replacement, cells: int) -> Blocks:
    curve, whose = (found.curve, f" of {shortened(found.method, 24)}") if isinstance(found, Replacement) else (found, "")
    return (Panel("learning_curve", plots.learning_curve(curve), f"Loss{whose} by epoch, on a log scale; lower is better."),)


_FITS: Final = "Learning curves"
_MEANING: Final = "What the directions mean"
_BLOCK: Final = "Where in a block the prompt acts"

_FURTHER: Final[dict[type, tuple[str, Callable[[Any, int], Blocks]]]] = {
    AnswersByMethod: (ANSWERS, _answers),
    Evaluation: ("Trait against coherence", _evaluation),
    ResultTable: ("Trait against coherence", _evaluation),
    Faithfulness: ("Faithfulness: next tokens and sites", _faithfulness),
    Reach: ("Distance from what prompts lead to", _reach),
    Collateral: ("Relative dose: how hard methods push", _collateral),
    CapturedStatistics: (_BLOCK, _statistics),
    Captured: (_BLOCK, _captured),
    Attribution: ("Which heads read the instruction", _attribution),
    ScoreAttribution: ("Why heads attend to the instruction", _scores),
    FrozenAttention: ("What is left with attention frozen", _frozen),
    PatchGrid: ("Patching: which cells carry the effect", _patching),
    Agreement: ("Two models on the same texts", _agreement),
    LogitLens: (_MEANING, _lens),
    TopTokens: (_MEANING, _top_tokens),
    Cosines: (_MEANING, _cosines),
    Replacement: (_FITS, _curve),
    LearningCurve: (_FITS, _curve),
}
"""Types of results in the order of the page: the heading of their part, and a function from a result and a limit on cells to figures."""

RESULTS: Final = tuple(_FURTHER)
"""Types of further results that a report can show."""
