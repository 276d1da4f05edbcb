"""Figures as files that need no script to be seen: for papers, slides, and viewers that run none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import plotly.graph_objects as go
import plotly.io

from psr_lens._utils.optional import package
from psr_lens.errors import InputError

FORMATS: Final = ("png", "svg", "pdf", "webp", "jpeg")
"""What can be written."""
WIDTH: Final = 860
"""Pixels, about the width of a text column; figures keep their own heights."""
HEIGHT: Final = 450
"""Pixels of a figure that has no height of its own."""

_REMEDY: Final = (
    "Install one (Debian: `apt-get install chromium`; elsewhere `plotly_get_chrome`), or name its file in BROWSER_PATH."
)


def write_images(
    figures: Mapping[str, go.Figure],
    folder: str | os.PathLike[str],
    formats: Sequence[str] = ("png", "svg"),
    *,
    width: int = WIDTH,
    scale: float = 2,
) -> list[Path]:
    """Write figures as pictures, each in every format, with one start of the browser that draws them.

    Args:
        figures: Figures by the names of their files, without ending.
        folder: Where; made if it is missing. Files of the same names are replaced, all at once when every picture is drawn.
        formats: Some of `FORMATS`.
        width: Pixels.
        scale: Pixels of a PNG for each pixel of the figure.

    Returns:
        The paths of the files.

    Raises:
        InputError: no figure, a name with a folder in it, an unknown format, or no Chrome or Chromium that starts.
        MissingPackageError: kaleido is not installed; `psr-lens[static]` brings it.
    """
    if isinstance(formats, str) or not formats or (unknown := [each for each in formats if each not in FORMATS]):
        got = repr(formats) if isinstance(formats, str) or not formats else ", ".join(map(repr, unknown))
        raise InputError("formats", got, f"a list of some of {', '.join(FORMATS)}")
    if not figures:
        raise InputError("figures", "none", "at least one")
    for name in figures:
        if not name or Path(name).name != name:
            raise InputError("figures", f"the name {name!r}", "the name of a file without its ending")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError("folder", repr(str(folder)), "a folder, or a path where one can be made", "A file is in the way.")
    check_browser()
    failed = package("choreographer.errors", "static").BrowserFailedError
    wanted = [(figure, f"{name}.{ending}") for name, figure in figures.items() for ending in formats]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished") as unfinished:
        drawn = [Path(unfinished) / file for _, file in wanted]
        try:
            chosen = [figure for figure, _ in wanted]
            heights = [int(figure.layout.height or HEIGHT) for figure in chosen]  # Plotly would make all of them alike
            plotly.io.write_images(chosen, list(map(str, drawn)), width=width, height=heights, scale=scale, validate=False)
        except failed as error:
            raise InputError("static", f"a browser that does not start ({error.args[0]})", "one that does", _REMEDY) from error
        return [each.replace(folder / each.name) for each in drawn]


def check_browser() -> None:
    """Refuse at once what `write_images` would refuse, before anything costly is run for it.

    Raises:
        InputError: there is no Chrome or Chromium.
        MissingPackageError: kaleido is not installed.
    """
    package("kaleido", "static")
    path = package("choreographer.browsers", "static").Chromium.find_browser(skip_local=False)
    if not path or not Path(path).is_file():
        raise InputError(
            "static", f"no browser{f' at {path}' if path else ''}", "a Chrome or Chromium, which draws the pictures", _REMEDY
        )
