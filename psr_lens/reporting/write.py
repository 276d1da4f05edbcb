"""One HTML file that shows a comparison to anybody with a browser: no server, no network, nothing beside the file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go

from psr_lens.errors import InputError
from psr_lens.evaluation.comparison import Comparison
from psr_lens.plots import write_images
from psr_lens.plots.images import check_browser
from psr_lens.plots.token_rows import shortened
from psr_lens.reporting.further import RESULTS, further_parts
from psr_lens.reporting.page import page_of
from psr_lens.reporting.parts import CELLS, Part, comparison_parts


def report(
    result: Comparison | Mapping[str, Comparison],
    path: str | os.PathLike[str],
    *,
    also: Sequence[object] | Mapping[str, Sequence[object]] = (),
    static: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> Path:
    """Write comparisons, and what else was found out about them, into one self-contained HTML file.

    The file holds Plotly once, opens offline and asks nothing of the network. It is put in its place only when it is complete, so a
    failure leaves an older file as it was.

    Args:
        result: What `compare` returned, or several by name (one section each).
        path: The file to write; folders on the way to it are made.
        also: Further results to show in the section: what `evaluate` (or its table), `faithfulness`, `capture` (in memory or statistics),
            `attribute`, `patching.patch` and `ablate`, `logit_lens`, `top_tokens` and `cosines` returned, and replacements fitted by
            gradient descent, or their curves. With several comparisons, a list for each of their names.
        static: A folder for every figure as PNG and SVG too, by kaleido and a browser (`psr-lens[static]`).
        title: Heading of the page.

    Returns:
        The path of the file.

    Raises:
        InputError: there is nothing to report, a value is no `Comparison`, a further result is of no type that has figures, `path` is a
            folder, or for `static` there is no browser.
        MissingPackageError: `static` without kaleido.
    """
    comparisons = _checked(result)
    further = _checked_further(also, comparisons)
    target = Path(path)
    if target.is_dir():
        raise InputError("path", f"the folder {str(path)!r}", "the name of a file", f"For example {str(target / 'report.html')!r}.")
    if static is not None:
        check_browser()
    cells = CELLS // len(comparisons)
    parts = {name: [*comparison_parts(each, cells), *further_parts(further[name], cells)] for name, each in comparisons.items()}
    page = page_of(comparisons, parts, title or "What the prompt steers, and what replaces it")
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


def _checked(result: object) -> dict[str, Comparison]:
    """The comparisons by name, after refusing what is none.

    Raises:
        InputError: as in `report`.
    """
    remedy = "`compare` makes them."
    if isinstance(result, Comparison):
        return {shortened(result.instruction, 60): result}
    if not isinstance(result, Mapping):
        raise InputError("result", f"a {type(result).__name__}", "a Comparison, or a mapping of names to Comparisons", remedy)
    if not result:
        raise InputError("result", "an empty mapping", "at least one Comparison", remedy)
    for name, value in result.items():
        if not isinstance(value, Comparison):
            raise InputError(f"result[{name!r}]", f"a {type(value).__name__}", "a Comparison", remedy)
    return {str(name): value for name, value in result.items()}


def _checked_further(also: object, comparisons: Mapping[str, Comparison]) -> dict[str, list[object]]:
    """The further results of each section.

    Raises:
        InputError: as in `report`.
    """
    if isinstance(also, RESULTS):
        raise InputError("also", f"a {type(also).__name__}", "a list of results", "Write [result].")
    if isinstance(also, Mapping):
        if unknown := [name for name in also if str(name) not in comparisons]:
            raise InputError("also", f"the names {', '.join(map(repr, unknown))}", f"some of {', '.join(map(repr, comparisons))}")
        by_name = {str(name): results for name, results in also.items()}
        if wrong := [
            name for name, results in by_name.items() if isinstance(results, RESULTS) or not isinstance(results, Sequence)
        ]:
            raise InputError(f"also[{wrong[0]!r}]", f"a {type(by_name[wrong[0]]).__name__}", "a list of results")
        return {name: list(by_name.get(name, ())) for name in comparisons}
    if not isinstance(also, Sequence):
        raise InputError("also", f"a {type(also).__name__}", "a list of results, or one for each of the names of `result`")
    if also and len(comparisons) > 1:
        remedy = f"Say whose they are: also={{{next(iter(comparisons))!r}: […]}}."
        raise InputError("also", f"one list for {len(comparisons)} comparisons", "a mapping of their names to lists", remedy)
    return {name: list(also) for name in comparisons}


def _files(parts: Mapping[str, Sequence[Part]]) -> dict[str, go.Figure]:
    """All figures by the names of their files: section, place in it, and what they show."""
    files = {}
    for section, (name, some) in enumerate(parts.items(), start=1):
        word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:24].strip("-") if len(parts) > 1 else ""
        prefix = f"{section}-{word or 'section'}-" if len(parts) > 1 else ""
        panels = [panel for part in some for panel in part.panels()]
        files.update({f"{prefix}{place:02d}-{panel.name}": panel.figure for place, panel in enumerate(panels, start=1)})
    return files
