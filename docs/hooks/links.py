"""Links of the README and of the benchmarks' files, where a page includes a part of them: to the site's pages."""

from __future__ import annotations

import re
from typing import Any, Final

from mkdocs.plugins import event_priority

LINK: Final = re.compile(r"\]\((?:\.\./)?([^)\s]+)\)")
NOTEBOOK: Final = re.compile(r"notebooks/(\w+)\.ipynb")
PAGES: Final = {
    "#capture-at-every-hook-point": "capture.md",
    "#learning-composing-steering": "steering.md",
    "#measuring": "measuring.md",
    "README.md#capture-at-every-hook-point": "capture.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/organism.md": "papers-table.md",
    "docs/report.png": "report.png",
}


@event_priority(-50)  # when what is included stands in the page
def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: turn links between the repository's files into links between pages."""
    return LINK.sub(_as_page, markdown)


def _as_page(link: re.Match[str]) -> str:
    notebook = NOTEBOOK.fullmatch(link[1])
    page = f"notebooks/{notebook[1]}.md" if notebook else PAGES.get(link[1])
    return link[0] if page is None else f"]({page})"
