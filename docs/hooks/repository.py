"""Parts of the repository's own files in pages, so that nothing is written twice.

`<!-- include README.md: Measuring -->` stands for what is under that heading, up to the next heading of any level; without a heading, for
the whole file. Links between the files become links between pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from mkdocs.exceptions import PluginError

ROOT: Final = Path(__file__).parents[2]
INCLUDE: Final = re.compile(r"<!-- include ([\w./-]+)(?:: (.+))? -->")
LINK: Final = re.compile(r"\]\((?:\.\./)?([^)\s]+)\)")
NOTEBOOK: Final = re.compile(r"notebooks/(\w+)\.ipynb")
WITHIN: Final = re.compile(r"docs/(.+)")
PAGES: Final = {
    "#capture-at-every-hook-point": "capture.md",
    "#learning-composing-steering": "steering.md",
    "#measuring": "measuring.md",
    "README.md#capture-at-every-hook-point": "capture.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/organism.md": "papers-table.md",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: put what is included in its place.

    Raises:
        PluginError: a file has no such heading.
    """
    return INCLUDE.sub(lambda found: LINK.sub(_as_page, part(found[1], found[2])), markdown)


def part(name: str, heading: str | None) -> str:
    """A file of the repository, or what stands under one of its headings.

    Raises:
        PluginError: it has no such heading.
    """
    text = (ROOT / name).read_text(encoding="utf-8")
    if heading is None:
        return text
    lines, fenced, inside, found = [], False, False, False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("#") and not fenced:
            inside = line.lstrip("#").strip() == heading
            found |= inside
        elif inside:
            lines.append(line)
    if not found:
        raise PluginError(f"{name} has no heading {heading!r} any more: see what includes it in docs/*.md.")
    return "\n".join(lines).strip()


def _as_page(link: re.Match[str]) -> str:
    if notebook := NOTEBOOK.fullmatch(link[1]):
        return f"](notebooks/{notebook[1]}.md)"
    if within := WITHIN.fullmatch(link[1]):
        return f"]({within[1]})"
    return f"]({PAGES[link[1]]})" if link[1] in PAGES else link[0]
