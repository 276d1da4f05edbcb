"""Figures as image files, for papers, slides and viewers without scripts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import plotly.graph_objects as go
import plotly.io

from psr_lens._utils.arguments import checks_arguments
from psr_lens._utils.optional import package
from psr_lens._utils.safe_files import check_no_file_on
from psr_lens.errors import InputError

FORMATS: Final = ("png", "svg", "pdf", "webp", "jpeg")
"""Supported formats."""
WIDTH: Final = 860
"""Width in pixels of a figure without a width of its own, about that of a text column; figures keep their own heights."""
HEIGHT: Final = 450
"""Height in pixels of a figure without a height of its own."""

_REMEDY: Final = "Install one (Debian: `apt-get install chromium`; elsewhere `plotly_get_chrome`), or set BROWSER_PATH to its file."


@checks_arguments
def write_images(
    figures: Mapping[str, go.Figure],
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("png", "svg"),
    *,
    width: int | None = None,
    scale: float = 2,
) -> list[Path]:
    """Write figures as image files, each in every format; the browser that draws them starts once.

    Args:
        figures: Figures by file name, without extension.
        folder: Folder of the files; created if missing. Existing files of the same names are replaced once every image is drawn.
        formats: Formats, from `FORMATS`.
        width: Width in pixels of all images; None for the width that each figure was drawn for (`width=` of its function), or 860.
        scale: Pixels of a bitmap per pixel of the figure.

    Returns:
        The paths of the files.

    Raises:
        InputError: no figures, a name with a folder in it, an unknown format, or no working Chrome or Chromium.
        MissingPackageError: kaleido is not installed; `psr-lens[static]` installs it.

    Example:
        >>> figure = psr.plots.relative_rmse(comparison, width=600, font_size=14)
        >>> paths = psr.plots.write_images({"rmse": figure}, "figures", ["pdf"])  # doctest: +SKIP
        >>> "pdf" in psr.plots.images.FORMATS
        True
    """
    if not formats or (unknown := [each for each in formats if each not in FORMATS]):
        got = "none" if not formats else ", ".join(map(repr, unknown))
        raise InputError("formats", got, f"a list of formats from {', '.join(FORMATS)}")
    if not figures:
        raise InputError("figures", "none", "at least one")
    for name in figures:
        if not name or Path(name).name != name:
            raise InputError("figures", f"the name {name!r}", "a file name without folder or extension")
    folder = Path(folder)
    check_no_file_on(folder, "folder")
    check_browser()
    failed = package("choreographer.errors", "static").BrowserFailedError
    wanted = [(figure, f"{name}.{ending}") for name, figure in figures.items() for ending in formats]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished") as unfinished:
        drawn = [Path(unfinished) / file for _, file in wanted]
        try:
            chosen = [figure for figure, _ in wanted]
            widths = [width or int(figure.layout.width or WIDTH) for figure in chosen]
            heights = [int(figure.layout.height or HEIGHT) for figure in chosen]  # Plotly would give all of them the same height
            plotly.io.write_images(chosen, list(map(str, drawn)), width=widths, height=heights, scale=scale, validate=False)
        except failed as error:
            raise InputError(
                "static", f"a browser that does not start ({error.args[0]})", "a working Chrome or Chromium", _REMEDY
            ) from error
        return [each.replace(folder / each.name) for each in drawn]


def check_browser() -> None:
    """Check that `write_images` can run, before any costly work.

    Raises:
        InputError: there is no Chrome or Chromium.
        MissingPackageError: kaleido is not installed.
    """
    package("kaleido", "static")
    path = package("choreographer.browsers", "static").Chromium.find_browser(skip_local=False)
    if not path or not Path(path).is_file():
        raise InputError(
            "static", f"no browser{f' at {path}' if path else ''}", "a Chrome or Chromium, which draws the images", _REMEDY
        )
