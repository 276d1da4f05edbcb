"""The notebooks as pages, with the outputs that are stored in them: nothing is executed, and a figure is the picture beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

NOTEBOOKS: Final = Path(__file__).parents[2] / "notebooks"
LINK: Final = re.compile(r"\((\w+)\.ipynb\)")
PICTURE: Final = re.compile(r"!\[png\]\((\S+)\)")
NOTE: Final = """
!!! note "This page is a notebook"
    It is `notebooks/{name}`, as it was last run. In a notebook the figures are interactive: `pip install ".[notebooks]"`.
"""


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """MkDocs hook: add a page for every notebook, and its pictures."""
    exporter = MarkdownExporter()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        resources = {"unique_key": "figure", "output_files_dir": path.stem}
        text, resources = exporter.from_filename(str(path), resources)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page(text, path.name)))
        for name, picture in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def page(text: str, name: str) -> str:
    """A notebook's Markdown with links to pages in place of notebooks, pictures that open large, and a note below its title."""
    linked = PICTURE.sub(r"[![figure](\1)](\1)", LINK.sub(r"(\1.md)", text))
    title, _, body = linked.strip().partition("\n")
    return f"{title}\n{NOTE.format(name=name)}\n{body}\n"
