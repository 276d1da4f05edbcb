"""Equations as MathML, which browsers draw by themselves: no script, no font, no network."""

from __future__ import annotations

import html
import re
from typing import Any, Final

from latex2mathml.converter import convert

EQUATION: Final = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """MkDocs hook: turn what `pymdownx.arithmatex` has marked into MathML."""
    return EQUATION.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    tag, tex = found.groups()
    display = "block" if tag == "div" else "inline"
    return f'<{tag} class="equation">{convert(html.unescape(tex).strip(), display=display)}</{tag}>'
