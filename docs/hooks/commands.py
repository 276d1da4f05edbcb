"""The command line's page, written by typer from the commands themselves."""

from __future__ import annotations

import re
from typing import Any, Final

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from psr_lens.apps.cli import app

MARKER: Final = "<!-- every command -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """MkDocs hook: put every command with its options in its place."""
    if MARKER not in markdown:
        return markdown
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="psr-lens")
    return markdown.replace(MARKER, re.sub(r"^# .*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL))
