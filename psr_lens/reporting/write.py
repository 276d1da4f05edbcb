"""`report`: one self-contained HTML file, which needs no server and no network."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.safe_files import check_file_name
from psr_lens._utils.short_text import shortened
from psr_lens._utils.yaml_config import by_text
from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots import write_images
from psr_lens.plots.images import check_browser
from psr_lens.reporting.comparison_figures import comparison_parts, with_correlations
from psr_lens.reporting.figures_by_result import ANSWERS, further_parts
from psr_lens.reporting.page import page_of
from psr_lens.reporting.parts import CELLS, Part


@checks_arguments
def report(
    result: Comparison | Mapping[str, Comparison],
    path: str | os.PathLike[str],
    *,
    also: Sequence[object] | Mapping[str, Sequence[object]] = (),
    static: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> Path:
    """Write comparisons and further results into one self-contained HTML file.

    The file contains Plotly, opens offline and loads nothing from the network. It replaces an existing file only when it is complete.

    Args:
        result: Result of `psr.compare`, or several by name, with one section each.
        path: The file to write; missing folders are created.
        also: Further results to show: those of `answers_by_method`, which come first, `evaluate` (or its table), `faithfulness`, `reach`,
            `collateral`, `capture` (in memory or statistics), `attribute`, `score_attribution`, `patching.freeze_attention`,
            `patching.patch`, `patching.ablate`, `logit_lens`, `jacobian_lens`, `top_tokens` and `cosines`, and replacements fitted by
            gradient descent or their learning curves. With several comparisons, a mapping of their names to lists.
        static: A folder for all figures as PNG and SVG files, which needs kaleido and a browser (`psr-lens[static]`).
        title: Heading of the page.

    Returns:
        The path of the file.

    Raises:
        InputError: no comparison, another type of result, a further result without figures, a `path` that is a folder or leads through a
            file, or no browser for `static`.
        MissingPackageError: `static` without kaleido.

    Example:
        >>> psr.report(comparison, "report.html").name
        'report.html'
    """
    comparisons = _checked(result)
    further = _checked_further(also, comparisons)
    target = Path(path)
    check_file_name(target, "report.html")
    if static is not None:
        check_browser()
    cells = CELLS // len(comparisons)
    parts = {name: _parts(each, further[name], cells) for name, each in comparisons.items()}
    page = page_of(comparisons, parts, title or "A prompt and its replacements, compared")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    if static is not None:
        write_images(_files(parts), static)
    return target


def _parts(comparison: Comparison, further: Sequence[object], cells: int) -> list[Part]:
    """The parts of a section: answers, the comparison, further results."""
    others = further_parts(further, cells, {name: comparison.methods[name] for name in with_correlations(comparison)})
    answers = [part for part in others if part.title == ANSWERS]
    return [*answers, *comparison_parts(comparison, cells), *(part for part in others if part.title != ANSWERS)]


def _checked(result: Comparison | Mapping[str, Comparison]) -> dict[str, Comparison]:
    """The comparisons by name.

    Raises:
        InputError: as in `report`.
    """
    if isinstance(result, Comparison):
        return {shortened(result.instruction, 60): result}
    if not result:
        raise InputError("result", "an empty mapping", "at least one Comparison from `psr.compare`")
    return by_text(result, "result")


def _checked_further(
    also: Sequence[object] | Mapping[str, Sequence[object]], comparisons: Mapping[str, Comparison]
) -> dict[str, list[object]]:
    """The further results of each section.

    Raises:
        InputError: as in `report`.
    """
    if isinstance(also, Mapping):
        if unknown := [name for name in also if str(name) not in comparisons]:
            raise InputError(
                "also", f"the names {', '.join(map(repr, unknown))}", f"names in `result`: {', '.join(map(repr, comparisons))}"
            )
        by_name = {str(name): results for name, results in also.items()}
        return {name: list(by_name.get(name, ())) for name in comparisons}
    if also and len(comparisons) > 1:
        remedy = f"Assign them to comparisons: also={{{next(iter(comparisons))!r}: […]}}."
        raise InputError("also", f"one list for {len(comparisons)} comparisons", "a mapping of their names to lists", remedy)
    return {name: list(also) for name in comparisons}


def _files(parts: Mapping[str, Sequence[Part]]) -> dict[str, go.Figure]:
    """All figures by file name: section, number in it, and name of the plot."""
    files = {}
    for section, (name, some) in enumerate(parts.items(), start=1):
        word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-") if len(parts) > 1 else ""
        prefix = f"{section}-{word or 'section'}-" if len(parts) > 1 else ""
        panels = [panel for part in some for panel in part.panels()]
        files.update({f"{prefix}{number:02d}-{panel.name}": panel.figure for number, panel in enumerate(panels, start=1)})
    return files
