"""The figures of a comparison, with a caption on how to read each."""

from __future__ import annotations

from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots import (
    coefficient_scatter,
    magnitude_distribution,
    magnitude_heatmap,
    magnitude_strips,
    relative_rmse,
)
from psr_lens.plots.scatter import MAX_PANELS, MAX_POINTS
from psr_lens.plots.sliders_and_buttons import MAX_STEPS
from psr_lens.plots.style import method_styles
from psr_lens.reporting.comparison_text import lead_of
from psr_lens.reporting.parts import EXAMPLES, Panel, Part, choice


def with_correlations(comparison: Comparison) -> tuple[str, ...]:
    """Methods whose scatter has a panel for each of their layers, with its correlations as the heading: none is at one after another.

    Constants are left out: on every token they apply the same.
    """
    styles = method_styles(comparison)
    return tuple(
        name
        for name, trace in comparison.methods.items()
        if 0 < len(trace.site_layers) <= MAX_PANELS and styles[name].role != "constant"
    )


def _scatter(comparison: Comparison, lead: str, cells: int) -> Part:
    methods = list(dict.fromkeys([lead, *with_correlations(comparison)]))
    return Part(
        "Coefficients applied and called for", tuple(_scatter_of(comparison, name, cells // len(methods)) for name in methods)
    )


def _scatter_of(comparison: Comparison, method: str, cells: int) -> Panel:
    return Panel(
        "coefficient_scatter",
        coefficient_scatter(
            comparison,
            method,
            max_points=min(MAX_POINTS, max(150, cells // 120)),
            max_layers=max(4, min(MAX_STEPS, cells // 600)),
        ),
        f"Each point is a token. The horizontal axis is the coefficient along {method}’s direction that would match the prompt; "
        "the vertical axis is the one that it applies, read from the token’s own activation. Points on the dotted diagonal "
        "are exact; constant steering would give a horizontal line. Axes are linear near 0 and logarithmic beyond. r is "
        "Pearson’s correlation, which a few large coefficients can dominate; ρ is Spearman’s, that of the ranks.",
    )


def comparison_parts(comparison: Comparison, cells: int) -> list[Part]:
    """The parts of the page that show a comparison."""
    sited = [name for name, trace in comparison.methods.items() if trace.site_layers]
    lead = lead_of(comparison, sited) if sited else None
    baseline = (
        " The dashed line is the paraphrase baseline, the same instruction in other words: a replacement below it is closer to the prompt "
        "than a paraphrase."
        if comparison.paraphrase_rmse is not None
        else ""
    )

    bars = (
        ""
        if lead is None
        else " Bars stand under a replacement that acts at that layer: the left one is the coefficient that it applies after reading the "
        "token, the right one the coefficient along the same directions that would match the prompt. Bars of equal length mean that the "
        "coefficient is right."
    )
    panels = 1 + len(comparison.methods)

    def of_response(triplet: int, max_tokens: int) -> tuple[Panel, ...]:
        offered = max(1, min(MAX_STEPS, cells // (2 * EXAMPLES * panels * len(comparison.tokens.rows(triplet)))))
        return (
            Panel(
                "magnitude_heatmap",
                magnitude_heatmap(comparison, triplet, max_tokens=max_tokens),
                "Rows are tokens, columns are layers, and the more a cell stands out, the harder its token is pushed. A faithful "
                "replacement repeats the prompt’s pattern row by row. A row stands for the activation after its token was read, which "
                "decides the token in the row below. Rows "
                "marked “prompt” come before the response; the last of them, at position −1, decides the first response token. Buttons "
                "change the unit: that of the activation (absolute), the median token of the layer (layer), the activation’s own length "
                "(relative), or, with a sign, the layer’s mean push (projection) and the angle to it (cosine).",
            ),
            Panel(
                "magnitude_strips",
                magnitude_strips(comparison, triplet, max_layers=offered),
                "The response as text, once for the prompt and once for each replacement, coloured by how far each token is pushed "
                "after the layer that the slider chooses. A token’s colour is that of the activation after it was read, which decides the "
                f"next token. If two strips show the same pattern, the replacement pushes the same tokens as the prompt.{bars}",
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
                    f"steering.{baseline} A value above the plot is written at its upper edge.",
                ),
                Panel(
                    "magnitude_distribution",
                    magnitude_distribution(comparison),
                    "How hard tokens are pushed, on a log scale: the median token, and bands of the middle half and of the middle "
                    "98\N{NO-BREAK SPACE}% of tokens. A wide band means that a few tokens are pushed much harder than the rest, a narrow "
                    "one, that all are pushed almost equally.",
                ),
            ),
        ),
        Part(
            "One response, token by token",
            (choice(comparison.tokens, panels, len(comparison.layers), cells, of_response),),
        ),
        *([] if lead is None else [_scatter(comparison, lead, cells)]),
    ]
