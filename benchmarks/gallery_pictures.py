"""The pictures of docs/gallery.md, each by the code above it, on the model that ships with the package.

python benchmarks/gallery_pictures.py docs/gallery
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

import psr_lens as psr

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 480
FENCED = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADED = re.compile(r"^### (\w+)$", re.MULTILINE)


def figures() -> dict[str, go.Figure]:
    """The last figure that is shown under each heading of the page."""
    names: dict[str, Any] = {}
    shown: list[go.Figure] = []
    exec(FENCED.findall((DOCS / "api" / "index.md").read_text(encoding="utf-8"))[0], names)
    _, *parts = HEADED.split((DOCS / "gallery.md").read_text(encoding="utf-8"))
    found = {}
    original = go.Figure.show
    go.Figure.show = lambda figure, *_, **__: shown.append(figure)
    try:
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            exec("\n".join(FENCED.findall(text)), names)
            found[name] = shown[-1]
    finally:
        go.Figure.show = original
    return found


def main(folder: Path) -> None:
    """Write them, and say how large they are together."""
    psr.progress_bars(False)
    paths = psr.plots.write_images(figures(), folder, ["webp"], width=WIDTH, scale=1.5)
    print(f"{len(paths)} pictures, {sum(path.stat().st_size for path in paths) / 1024:.0f} KiB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
