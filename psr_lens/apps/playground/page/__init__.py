"""What draws the playground: one script and one style for a notebook, the page of `psr-lens play` and a frozen file."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

_FOLDER: Final = files(__name__)

SCRIPT: Final = "\n".join((_FOLDER / part).read_text(encoding="utf-8") for part in ("column.js", "board.js", "transport.js"))
"""A JavaScript module, whose parts lie here as files."""
STYLE: Final = (_FOLDER / "play.css").read_text(encoding="utf-8")
"""Its style sheet."""
