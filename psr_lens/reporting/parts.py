"""What a page is made of: figures with a sentence on how to read them, in named parts, some with a choice among responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import plotly.graph_objects as go

from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots import (
    coefficient_scatter,
    coefficient_text,
    magnitude_distribution,
    magnitude_heatmap,
    magnitude_strips,
    relative_rmse,
)
from psr_lens.plots.heatmap import MAX_LAYERS
from psr_lens.plots.scatter import MAX_POINTS
from psr_lens.plots.token_rows import shortened
from psr_lens.prompts import TokenTable
from psr_lens.prompts.token_text import readable
from psr_lens.reporting.words import lead_of

EXAMPLES: Final = 3
"""Most responses of a part that the reader can choose from."""
CELLS: Final = 110_000
"""Most heatmap cells of a report's comparisons (about 1.2 MB), and as many again of what is shown with them; where they do not suffice, a
part shows fewer responses, then coarser heatmaps."""


@dataclass(frozen=True)
class Panel:
    """One figure."""

    name: str
    """What its file is called."""
    figure: go.Figure
    """The figure."""
    caption: str
    """How to read it."""


@dataclass(frozen=True)
class Choice:
    """Figures of several responses, of which the reader sees one at a time."""

    options: tuple[tuple[str, tuple[Panel, ...]], ...]
    """First words of each response, and its figures."""


@dataclass(frozen=True)
class Part:
    """A named part of a section."""

    title: str
    """Its heading."""
    blocks: tuple[Panel | Choice, ...]
    """What stands in it, in reading order."""

    def panels(self) -> list[Panel]:
        """All its figures."""
        alone = [
            [block] if isinstance(block, Panel) else [each for _, some in block.options for each in some] for block in self.blocks
        ]
        return [panel for panels in alone for panel in panels]


def choice(tokens: TokenTable, panels: int, layers: int, cells: int, figures: Callable[[int, int], tuple[Panel, ...]]) -> Choice:
    """Figures of the first responses, as many as their heatmaps' cells allow.

    Args:
        tokens: What the rows of the result are.
        panels: Panels of a response's heatmap.
        layers: Layers of a panel.
        cells: How many cells there may be in all.
        figures: Makes the figures of one response; it is told which one, and the most rows of a heatmap.
    """
    triplets = tokens.triplet.unique().tolist()[:EXAMPLES]
    wide = panels * min(layers, MAX_LAYERS)
    max_tokens = max(40, min(400, cells // wide))
    sizes = [wide * min(max_tokens, len(tokens.rows(triplet))) for triplet in triplets]
    fitting = [triplet for place, triplet in enumerate(triplets) if sum(sizes[: place + 1]) <= cells] or triplets[:1]
    return Choice(tuple((first_words(tokens, triplet), figures(triplet, max_tokens)) for triplet in fitting))


def first_words(tokens: TokenTable, triplet: int) -> str:
    """How a response begins."""
    rows = tokens.rows(triplet)
    rows = rows[tokens.position[rows] >= 0][:16]
    return shortened(" ".join(readable([tokens.strings[row] for row in rows.tolist()], tokens.strings)), 56)


def merged(parts: Sequence[Part]) -> list[Part]:
    """Parts in order, those of one title as one."""
    titles = dict.fromkeys(part.title for part in parts)
    return [Part(title, tuple(block for part in parts if part.title == title for block in part.blocks)) for title in titles]


def comparison_parts(comparison: Comparison, cells: int) -> list[Part]:
    """What a comparison itself shows."""
    lead = lead_of(comparison)
    yardstick = (
        " The dashed line is the instruction in other words; a replacement under it is closer than a second wording."
        if comparison.paraphrase_rmse is not None
        else ""
    )

    def of_response(triplet: int, max_tokens: int) -> tuple[Panel, ...]:
        return (
            Panel(
                "magnitude_heatmap",
                magnitude_heatmap(comparison, triplet, max_tokens=max_tokens),
                "Every row is a token and every column a layer; dark cells are pushed hard. A faithful replacement repeats the prompt’s "
                "pattern, row by row. Rows marked “prompt” stand before the response; the last of them, −1, is where the first "
                "response token is predicted.",
            ),
            Panel(
                "magnitude_strips",
                magnitude_strips(comparison, triplet),
                "The response as text, once for the prompt and once for each replacement, coloured by how far each token has been "
                "pushed after the last layer. Where two strips have the same pattern, the replacement picks the same tokens.",
            ),
            Panel(
                "coefficient_text",
                coefficient_text(comparison, lead, triplet),
                f"Under each token, the left bar is the push that {lead} gives it, the right bar the push along the same direction that "
                "would match the prompt; bars of equal length mean that the strength was read well.",
            ),
        )

    return [
        Part(
            "Distance from the prompt",
            (
                Panel(
                    "relative_rmse",
                    relative_rmse(comparison),
                    "How far each replacement is from what the prompt does, layer by layer: 0 would be the same effect, 1 is as far as no "
                    f"steering at all.{yardstick}",
                ),
                Panel(
                    "magnitude_distribution",
                    magnitude_distribution(comparison),
                    "Each shape shows how strongly tokens are pushed, on a log scale; where it is wide, there are many tokens, and the dot "
                    "is the median. A tall shape means that a few tokens are pushed much harder than the rest, a flat one that all get "
                    "nearly the same.",
                ),
            ),
        ),
        Part(
            "One response, token by token",
            (choice(comparison.tokens, 1 + len(comparison.methods), len(comparison.layers), cells, of_response),),
        ),
        Part(
            "Strength read, and strength called for",
            (
                Panel(
                    "coefficient_scatter",
                    coefficient_scatter(comparison, lead, max_points=min(MAX_POINTS, max(150, cells // 120))),
                    f"A point is a token: across, the push along {lead}’s direction that would match the prompt; up, the push that it "
                    "reads from the token’s own activation. Points on the dotted diagonal are read exactly; a constant would be a level "
                    "line.",
                ),
            ),
        ),
    ]
