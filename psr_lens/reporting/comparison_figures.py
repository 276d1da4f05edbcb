"""The figures of a comparison, with a caption on how to read each."""

from __future__ import annotations

from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots import (
    coefficient_scatter,
    coefficient_text,
    magnitude_distribution,
    magnitude_heatmap,
    magnitude_strips,
    relative_rmse,
)
from psr_lens.plots.scatter import MAX_POINTS
from psr_lens.reporting.comparison_text import lead_of
from psr_lens.reporting.parts import Panel, Part, choice


def comparison_parts(comparison: Comparison, cells: int) -> list[Part]:
    """The parts of the page that show a comparison."""
    lead = lead_of(comparison)
    baseline = (
        " The dashed line is the paraphrase baseline, the same instruction in other words: a replacement below it is closer to the prompt "
        "than a paraphrase."
        if comparison.paraphrase_rmse is not None
        else ""
    )

    def of_response(triplet: int, max_tokens: int) -> tuple[Panel, ...]:
        return (
            Panel(
                "magnitude_heatmap",
                magnitude_heatmap(comparison, triplet, max_tokens=max_tokens),
                "Rows are tokens, columns are layers, and dark cells are pushed hard. A faithful replacement repeats the prompt’s pattern "
                "row by row. Rows marked “prompt” come before the response; the last of them, at position −1, predicts the first "
                "response token.",
            ),
            Panel(
                "magnitude_strips",
                magnitude_strips(comparison, triplet),
                "The response as text, once for the prompt and once for each replacement, coloured by how far each token is pushed "
                "after the last layer. If two strips show the same pattern, the replacement pushes the same tokens as the prompt.",
            ),
            Panel(
                "coefficient_text",
                coefficient_text(comparison, lead, triplet),
                f"Under each token, the left bar is the coefficient that {lead} applies; the right bar is the coefficient along the same "
                "direction that would match the prompt. Bars of equal length mean that the coefficient is right.",
            ),
        )

    return [
        Part(
            "Distance from the prompt",
            (
                Panel(
                    "relative_rmse",
                    relative_rmse(comparison),
                    "Distance of each replacement from the prompt’s effect, layer by layer: 0 is the same effect, 1 is as far away as no "
                    f"steering.{baseline}",
                ),
                Panel(
                    "magnitude_distribution",
                    magnitude_distribution(comparison),
                    "How hard tokens are pushed, on a log scale. A shape is wide where there are many tokens; its dot is the median. "
                    "A tall shape means that a few tokens are pushed much harder than the rest; a flat one, that all are "
                    "pushed almost equally.",
                ),
            ),
        ),
        Part(
            "One response, token by token",
            (choice(comparison.tokens, 1 + len(comparison.methods), len(comparison.layers), cells, of_response),),
        ),
        Part(
            "Coefficients applied and called for",
            (
                Panel(
                    "coefficient_scatter",
                    coefficient_scatter(comparison, lead, max_points=min(MAX_POINTS, max(150, cells // 120))),
                    f"Each point is a token. The horizontal axis is the coefficient along {lead}’s direction that would match the prompt; "
                    "the vertical axis is the one that it applies, read from the token’s own activation. Points on the dotted diagonal "
                    "are exact; constant steering would give a horizontal line.",
                ),
            ),
        ),
    ]
