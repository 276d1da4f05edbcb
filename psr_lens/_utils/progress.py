"""Progress bars: shown for whatever takes longer than a few seconds, by the first process only, and switched off for all at once."""

from __future__ import annotations

import os
from typing import Any, Final

from tqdm.auto import tqdm

DELAY: Final = 3.0
"""Seconds before a bar appears; what ends sooner shows none."""

_shown = True


def progress_bars(show: bool) -> None:
    """Show progress bars, or hide all of them; they are shown unless this or the environment variable `TQDM_DISABLE` says otherwise.

    Example:
        >>> psr.progress_bars(False)
    """
    global _shown
    _shown = show


def progress_bar(*arguments: Any, **settings: Any) -> tqdm[Any]:
    """A `tqdm` bar that appears once the work has taken longer than `DELAY`; arguments as for `tqdm`."""
    hidden = not _shown or os.environ.get("RANK", "0") != "0"  # as launchers of several processes number them
    # `None` would ask whether the output is a terminal; left out, it leaves the choice to the environment.
    return tqdm(*arguments, delay=DELAY, **settings, **({"disable": True} if hidden else {}))
