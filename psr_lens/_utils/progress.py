"""Progress bars: they appear for work that takes more than a few seconds, in the first process only; one switch hides them all."""

from __future__ import annotations

import os
from typing import Any, Final

from tqdm.auto import tqdm

from psr_lens._utils.arguments import checks_arguments

DELAY: Final = 3.0
"""Seconds before a bar appears; shorter work shows none."""

_shown = True


@checks_arguments
def progress_bars(show: bool) -> None:
    """Show or hide all progress bars.

    They are shown by default; the environment variable `TQDM_DISABLE=1` hides them too.

    Example:
        >>> psr.progress_bars(False)
        >>> psr.progress_bars(True)
    """
    global _shown
    _shown = show


def progress_bar(*arguments: Any, **settings: Any) -> tqdm[Any]:
    """A `tqdm` bar that appears once the work has taken `DELAY` seconds; arguments as for `tqdm`."""
    hidden = not _shown or os.environ.get("RANK", "0") != "0"  # which launchers set for each process
    # `disable=None` would depend on the terminal; left out, the environment decides.
    return tqdm(*arguments, delay=DELAY, **settings, **({"disable": True} if hidden else {}))
