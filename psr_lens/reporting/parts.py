"""The parts of a page: figures with captions, under headings, some with a choice of responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import plotly.graph_objects as go

from psr_lens._utils.short_text import shortened
from psr_lens.plots.heatmap import MAX_LAYERS
from psr_lens.prompts import TokenTable
from psr_lens.prompts.token_text import joined

EXAMPLES: Final = 3
"""Most responses of a part to choose from."""
CELLS: Final = 25_000
"""Most heatmap cells of a report's comparisons (about 1.5 MB, with five scales), and again of its further results. Beyond it, parts show
fewer responses, then coarser heatmaps."""


@dataclass(frozen=True)
class Panel:
    """One figure with its caption."""

    name: str
    """Name of the plot, also in its file name."""
    figure: go.Figure
    """The figure."""
    caption: str
    """How to read it."""


@dataclass(frozen=True)
class Choice:
    """Figures of several responses, shown one response at a time."""

    options: tuple[tuple[str, tuple[Panel, ...]], ...]
    """The first words of each response, and its figures."""


@dataclass(frozen=True)
class Piece:
    """A piece of an answer: a token, or the tokens of one character."""

    text: str
    """Its text; the pieces of an answer make it up."""
    push: float | None
    """How hard it was pushed: ‖Δ‖ over the median of its layer, mean over layers; None if there is no median."""


@dataclass(frozen=True)
class Step:
    """One answer of a method at one strength."""

    alpha: str
    """The strength as text."""
    text: str
    """What it wrote."""
    trait: str
    """The trait score; empty if there is none."""
    pieces: tuple[Piece, ...]
    """The text token by token; empty if it was not read so."""
    chosen: bool
    """Whether it is shown first."""


@dataclass(frozen=True)
class Answer:
    """One method's answer to a question, as text."""

    method: str
    """The method, with its strength where that is not 1 and cannot be chosen."""
    steps: tuple[Step, ...]
    """The answers at all strengths, from the lowest up; one is shown first."""

    @property
    def shown(self) -> Step:
        """The answer that is shown first."""
        return next(each for each in self.steps if each.chosen)

    @property
    def has_choice(self) -> bool:
        """Whether there are other strengths to choose."""
        return len(self.steps) > 1

    @property
    def data(self) -> list[dict[str, object]]:
        """The steps for the page's script: strength, trait score, and pieces of text with their magnitudes."""
        return [
            {
                "alpha": each.alpha,
                "trait": each.trait,
                "chosen": each.chosen,
                "pieces": [[piece.text, None if piece.push is None else round(piece.push, 2)] for piece in each.pieces]
                or [[each.text, None]],
            }
            for each in self.steps
        ]


@dataclass(frozen=True)
class Answers:
    """A question and the answers of every method."""

    question: str
    """The question."""
    answers: tuple[Answer, ...]
    """The answers, in the order of the methods."""
    note: str = ""
    """What is left out after it, if anything is."""
    result: int = 0
    """Number of the result that it is of: − and + turn a method's answers to all questions of one result."""

    @property
    def is_colored(self) -> bool:
        """Whether any token has a colour."""
        return any(each.shown.pieces for each in self.answers)

    @property
    def has_steps(self) -> bool:
        """Whether there are other strengths to choose."""
        return any(each.has_choice for each in self.answers)


@dataclass(frozen=True)
class Part:
    """A part of a section under its own heading."""

    title: str
    """Its heading."""
    blocks: tuple[Panel | Choice | Answers, ...]
    """Its figures and answers in reading order."""

    def panels(self) -> list[Panel]:
        """All figures of the part."""
        found: list[Panel] = []
        for block in self.blocks:
            if isinstance(block, Panel):
                found.append(block)
            elif isinstance(block, Choice):
                found += [panel for _, some in block.options for panel in some]
        return found


def choice(tokens: TokenTable, panels: int, layers: int, cells: int, figures: Callable[[int, int], tuple[Panel, ...]]) -> Choice:
    """Figures of the first responses, as many as the limit on heatmap cells allows.

    Args:
        tokens: The tokens of the result's rows.
        panels: Panels of one response's heatmap.
        layers: Layers of a panel.
        cells: Most cells of all heatmaps.
        figures: Makes the figures of one response from its index and the most rows of a heatmap.
    """
    triplets = tokens.triplet.unique().tolist()[:EXAMPLES]
    wide = panels * min(layers, MAX_LAYERS)
    max_tokens = max(20, min(400, cells // wide))
    sizes = [wide * min(max_tokens, len(tokens.rows(triplet))) for triplet in triplets]
    fitting = [triplet for index, triplet in enumerate(triplets) if sum(sizes[: index + 1]) <= cells] or triplets[:1]
    return Choice(tuple((first_words(tokens, triplet), figures(triplet, max_tokens)) for triplet in fitting))


def first_words(tokens: TokenTable, triplet: int) -> str:
    """The first words of a response."""
    rows = tokens.rows(triplet)
    rows = rows[tokens.position[rows] >= 0][:16]
    return shortened(joined([tokens.strings[row] for row in rows.tolist()], tokens.strings), 56)


def merged(parts: Sequence[Part]) -> list[Part]:
    """Parts in order, with those of the same title joined."""
    titles = dict.fromkeys(part.title for part in parts)
    return [Part(title, tuple(block for part in parts if part.title == title for block in part.blocks)) for title in titles]
