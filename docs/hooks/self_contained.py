"""A site that needs no other host: what the theme would fetch for features that no page uses is cut out, and anything else refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from mkdocs.exceptions import PluginError

ELSEWHERE: Final = re.compile(r"https://unpkg\.com/[\w@./-]*")
"""Where the theme's script would fetch mermaid, for diagrams, and a stand-in for browsers of before 2020."""
LOADED: Final = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?((?:https?:)?//[^\s\">]+)")
"""What a page fetches when it is opened."""


def on_post_build(config: Any, **_: Any) -> None:
    """MkDocs hook: look through what was built.

    Raises:
        PluginError: a page loads something from another host.
    """
    site = Path(config.site_dir)
    for path in (site / "assets" / "javascripts").glob("bundle.*"):
        path.write_text(ELSEWHERE.sub("", path.read_text(encoding="utf-8")), encoding="utf-8")
    for path in site.rglob("*.html"):
        if found := LOADED.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.relative_to(site)} loads {found[1]}. Put it under docs/assets.")
