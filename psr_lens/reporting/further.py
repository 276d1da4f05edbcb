"""What a report can show beside a comparison: one line of `_FURTHER` a type of result, with the part of the page that its figures go to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from psr_lens import plots
from psr_lens.activations.capture import Captured
from psr_lens.activations.statistics import CapturedStatistics
from psr_lens.errors import InputError
from psr_lens.evaluation.evaluation_result import Evaluation
from psr_lens.evaluation.faithfulness import Faithfulness
from psr_lens.interpretation.attribution import Attribution
from psr_lens.interpretation.directions import Cosines, LogitLens, TopTokens
from psr_lens.interpretation.patching import PatchGrid
from psr_lens.models.hook_points import layer_of
from psr_lens.plots.token_rows import shortened
from psr_lens.replacement import LearningCurve, Replacement
from psr_lens.reporting.parts import Choice, Panel, Part, choice, merged
from psr_lens.results.table import ResultTable

Blocks = tuple[Panel | Choice, ...]


def further_parts(results: Iterable[object], cells: int) -> list[Part]:
    """Parts for results of any of the known types, in the order of the page; results of one type stand together.

    Args:
        results: What to show.
        cells: How many heatmap cells there may be in all.

    Raises:
        InputError: a result is of no type that has figures.
    """
    results = list(results)
    kinds = list(_FURTHER)
    found = []
    for place, result in enumerate(results):
        kind = next((each for each in kinds if isinstance(result, each)), None)
        if kind is None:
            known = ", ".join(each.__name__ for each in kinds)
            raise InputError(f"also[{place}]", f"a {type(result).__name__}", f"one of {known}")
        found.append((kinds.index(kind), result))
    share = cells // max(1, len(results))
    made = []
    for kind_at, result in sorted(found, key=lambda each: each[0]):
        title, blocks = _FURTHER[kinds[kind_at]]
        made.append(Part(title, blocks(result, share)))
    return merged(made)


def _captured(captured: Captured, cells: int) -> Blocks:
    kinds = [
        kind for kind in ("attn_out", "mlp_out", "resid_post") if any(name.endswith(f"hook_{kind}") for name in captured.deltas)
    ]
    layers = len({layer_of(name) for name in captured.deltas})
    what = "each layer adds because of the prompt" if captured.difference == "local" else "the prompt has changed so far"

    def of_response(triplet: int, max_tokens: int) -> tuple[Panel, ...]:
        caption = (
            f"Every row is a token and every column a layer: how much {what}, in what attention writes, what the MLP writes, and "
            "the residual stream that both write into."
        )
        chosen = kinds or ("attn_out", "mlp_out", "resid_post")
        return (Panel("magnitude_by_kind", plots.magnitude_by_kind(captured, triplet, chosen, max_tokens=max_tokens), caption),)

    return (choice(captured.tokens, max(1, len(kinds)), layers, cells, of_response),)


def _statistics(statistics: CapturedStatistics, cells: int) -> Blocks:
    stream = [name for name in statistics.overall if name.endswith("hook_resid_post")]
    return (
        Panel(
            "magnitude_profile",
            plots.magnitude_profile(statistics),
            "A line is the median token at one kind of hook point; its band holds 98 of 100 tokens. A wide band means that the prompt "
            "pushes a few tokens much harder than the rest.",
        ),
        Panel(
            "rank_energy",
            plots.rank_energy(statistics, stream or None),
            "How much of what the prompt does lies in its first few directions, over all tokens. A line that starts high says that one "
            "direction with a strength of its own for each token is nearly enough.",
        ),
    )


def _evaluation(result: Evaluation | ResultTable, cells: int) -> Blocks:
    return (
        Panel(
            "pareto",
            plots.pareto(result),
            "A point is a method at one strength, a line goes from its smallest to its largest; up and to the right is better. The star "
            "is the prompt, the grey circle the model as it is.",
        ),
    )


def _faithfulness(result: Faithfulness, cells: int) -> Blocks:
    panels: list[Panel] = []
    for block in result.blocks:
        panels += [
            Panel(
                "next_token",
                plots.next_token(result, block),
                "Above, how far the next-token distribution is from the prompted model’s; further left is closer. Below, how often both "
                "find the same token likeliest. Bars are 95 % intervals over responses.",
            ),
            Panel(
                "coefficient_correlation",
                plots.coefficient_correlation(result, block),
                "Whether the strength that is read from each token follows the one that the prompt calls for: 1 is in step, 0 unrelated.",
            ),
            Panel(
                "explained_energy",
                plots.explained_energy(result, block),
                "Above, the share of the prompt’s effect that is there after each layer. Below, of what is missing at each site, the share "
                "that is filled in, and (dotted) the most that its directions could fill in.",
            ),
        ]
    return tuple(panels)


def _attribution(result: Attribution, cells: int) -> Blocks:
    heads = min(4, len(result.layers) * result.share.heads.shape[2])
    most = ", ".join(map(str, result.top_heads(heads)))
    blocks: list[Panel | Choice] = [
        Panel(
            "head_map",
            plots.head_map(result),
            f"How much of Δ each head reads from the instruction’s tokens; below 0 it works against Δ. The most: {most}. What a later MLP "
            "passes on counts as MLP.",
        ),
        Panel(
            "parts_by_layer",
            plots.parts_by_layer(result),
            "Everything that Δ is made of, exactly: the parts of a layer sum to 1. Parts below 0 work against it.",
        ),
    ]
    if result.sources is not None:
        read = [triplet for triplet, words in enumerate(result.sources.strings) if words]
        blocks += [
            Panel(
                "source_map",
                plots.source_map(result, triplet),
                "Which words of the instruction are read at which layer, over all heads, on the first response.",
            )
            for triplet in read[:1]
        ]
    return tuple(blocks)


def _patching(grid: PatchGrid, cells: int) -> Blocks:
    whose = "prompt’s" if grid.reference == "prompt" else "replacement’s"
    does = "each cell brings into the base run by itself" if grid.measured == "recovered" else "is lost with each cell alone"
    caption = f"How much of the {whose} effect {does}, as a share of it in KL: 0 is nothing, 1 all. Cells do not sum to 1."
    mean = Panel("patch_map", plots.patch_map(grid, None), f"{caption} Mean over all responses.")
    if grid.cells == "all":
        return (mean,)

    def of_response(triplet: int, max_tokens: int) -> tuple[Panel, ...]:
        return (Panel("patch_map", plots.patch_map(grid, triplet, max_tokens=max_tokens), caption),)

    return (mean, choice(grid.tokens, 1, len(grid.layers), cells, of_response))


def _lens(lens: LogitLens, cells: int) -> Blocks:
    what = "direction that is added" if lens.part == "directions" else "probe that reads the strength"
    caption = f"Each {what}, read through the model’s own unembedding: the words that it makes likelier, and those less likely."
    return (Panel("logit_lens", plots.logit_lens(lens, columns=2), caption),)


def _top_tokens(found: TopTokens, cells: int) -> Blocks:
    caption = "The tokens that are pushed hardest, each in its context; a bar is as long as what is added to it."
    return (Panel("top_tokens", plots.top_tokens(found), caption),)


def _cosines(found: Cosines, cells: int) -> Blocks:
    caption = (
        "How directions lie to each other: 1 is the same, 0 unrelated, −1 opposite. Blocks are methods, lines within them layers."
    )
    return (Panel("cosine_matrix", plots.cosine_matrix(found), caption),)


def _curve(found: LearningCurve | Replacement, cells: int) -> Blocks:
    curve, whose = (found.curve, f" of {shortened(found.method, 24)}") if isinstance(found, Replacement) else (found, "")
    return (
        Panel("learning_curve", plots.learning_curve(curve), f"Loss{whose} by epoch of its fit, on a log scale; lower is better."),
    )


_MEANING: Final = "What the directions mean"
_BLOCK: Final = "Where in a block"

_FURTHER: Final[dict[type, tuple[str, Callable[[Any, int], Blocks]]]] = {
    Evaluation: ("Trait against coherence", _evaluation),
    ResultTable: ("Trait against coherence", _evaluation),
    Faithfulness: ("Next tokens, and what each site does", _faithfulness),
    CapturedStatistics: (_BLOCK, _statistics),
    Captured: (_BLOCK, _captured),
    Attribution: ("Which heads read the instruction", _attribution),
    PatchGrid: ("What goes through which cell", _patching),
    LogitLens: (_MEANING, _lens),
    TopTokens: (_MEANING, _top_tokens),
    Cosines: (_MEANING, _cosines),
    Replacement: ("How the fits went", _curve),
    LearningCurve: ("How the fits went", _curve),
}
"""Types of results, in the order of the page: the heading of their part, and what makes their figures within so many heatmap cells."""

RESULTS: Final = tuple(_FURTHER)
"""Types of results that a report can show beside a comparison."""
