"""The HTML page, made from parts and text with a template."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from psr_lens._utils.optional import versions
from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots.dark import dark_colors
from psr_lens.plots.style import TEMPLATE
from psr_lens.reporting.answer_blocks import FULL
from psr_lens.reporting.comparison_text import MethodRow, lead_of, method_rows, settings_of, summary
from psr_lens.reporting.figures_by_result import ANSWERS
from psr_lens.reporting.massive_tables import MassiveTables, massive_tables
from psr_lens.reporting.parts import Answers, Choice, Panel, Part
from psr_lens.reporting.provenance import BIBTEX, outline_in_python


@dataclass(frozen=True)
class _Figure:
    """One figure, ready for the page."""

    name: str
    """Name of the plot, used as its CSS class."""
    caption: str
    """How to read it."""
    data: Markup
    """The figure as JSON without its template."""
    height: int
    """Height in pixels, reserved until it is drawn."""


@dataclass(frozen=True)
class _Block:
    """Figures that belong together, or a choice of several such groups."""

    key: str
    """Anchor."""
    options: tuple[tuple[str, tuple[_Figure, ...]], ...]
    """Labels and their figures; a single option without a label if there is nothing to choose."""
    answers: Answers | None = None
    """Answers as text, in place of figures."""


@dataclass(frozen=True)
class _PartView:
    """One part, ready for the page."""

    key: str
    """Anchor."""
    title: str
    """Heading."""
    blocks: tuple[_Block, ...]
    """Its figures."""

    @property
    def is_colored(self) -> bool:
        """Whether it has answers whose tokens are coloured."""
        return any(each.answers is not None and each.answers.is_colored for each in self.blocks)

    @property
    def has_steps(self) -> bool:
        """Whether it has answers at strengths to choose among."""
        return any(each.answers is not None and each.answers.has_steps for each in self.blocks)


@dataclass(frozen=True)
class _Section:
    """One comparison, ready for the page."""

    key: str
    """Anchor."""
    name: str
    """Heading."""
    instruction: str
    """The instruction of the prompt."""
    summary: str
    """The result in sentences."""
    rows: tuple[MethodRow, ...]
    """The table of methods."""
    alpha: str
    """Strength α of the replacements in the figures."""
    last_layer: int
    """Layer after which the table gives the relative RMSE."""
    has_median: bool
    """Whether the relative error of the median token is known."""
    massive: MassiveTables | None
    """The tokens with massive activations, if there are any."""
    first: tuple[_PartView, ...]
    """The answers side by side, which come before the scores; empty if there are none."""
    parts: tuple[_PartView, ...]
    """The figures."""
    code: str
    """The calls that make such a comparison and page."""
    settings: tuple[tuple[str, str], ...]
    """The settings that reproduce it."""


def page_of(comparisons: Mapping[str, Comparison], parts: Mapping[str, Sequence[Part]], title: str) -> str:
    """The page as HTML.

    Args:
        comparisons: Comparisons by name of their section.
        parts: The figures of each section.
        title: Heading of the page.
    """
    environment = Environment(
        loader=PackageLoader("psr_lens.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["script_safe"] = script_safe
    sections = [_section(f"s{number}", name, each, parts[name]) for number, (name, each) in enumerate(comparisons.items(), start=1)]
    template = script_safe(TEMPLATE.to_plotly_json())
    shown = [part for section in sections for part in (*section.first, *section.parts)]
    figures = [each for part in shown for block in part.blocks for _, group in block.options for each in group]
    return environment.get_template("report.html.j2").render(
        title=title,
        sections=sections,
        template=template,
        plotly=Markup(get_plotlyjs()),  # Plotly's own source, which contains no user input
        bibtex=BIBTEX,
        full=FULL,
        dark=script_safe(dark_colors([template, *(each.data for each in figures)])),
        versions=[*versions("plotly"), ("python", platform.python_version())],
    )


def _section(key: str, name: str, comparison: Comparison, parts: Sequence[Part]) -> _Section:
    views = tuple(_part(f"{key}-{number}", part) for number, part in enumerate(parts, start=1))
    return _Section(
        key=key,
        name=name,
        instruction=comparison.instruction,
        summary=summary(comparison, lead_of(comparison)),
        rows=tuple(method_rows(comparison)),
        alpha=comparison.strengths,
        last_layer=comparison.layers[-1],
        has_median=any(trace.error is not None for trace in comparison.methods.values()),
        massive=massive_tables(comparison),
        first=tuple(each for each in views if each.title == ANSWERS),
        parts=tuple(each for each in views if each.title != ANSWERS),
        code=outline_in_python(comparison),
        settings=tuple(settings_of(comparison)),
    )


def _part(key: str, part: Part) -> _PartView:
    blocks = []
    for number, block in enumerate(part.blocks, start=1):
        if isinstance(block, Answers):
            blocks.append(_Block(f"{key}-{number}", (), block))
            continue
        options = block.options if isinstance(block, Choice) else (("", (block,)),)
        blocks.append(_Block(f"{key}-{number}", tuple((label, tuple(map(_figure, panels))) for label, panels in options)))
    return _PartView(key, part.title, tuple(blocks))


def _figure(panel: Panel) -> _Figure:
    return _Figure(panel.name, panel.caption, _data(panel.figure), int(panel.figure.layout.height))


def _data(figure: go.Figure) -> Markup:
    data = json.loads(figure.to_json())
    data["layout"].pop("template", None)  # the page holds it once for all figures
    return script_safe(data)


def script_safe(data: object) -> Markup:
    """JSON that is safe inside a script element: no `<` can end it early."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))
