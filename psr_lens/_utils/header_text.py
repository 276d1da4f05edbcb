"""What a header of HTTP can hold."""

from __future__ import annotations

import re
from typing import Final

_UNSENDABLE: Final = re.compile(r"[^\x20-\x7e\xa0-\xff]")


def is_header_text(value: str) -> bool:
    """Whether `http.client` sends a value as it is: Latin-1 without control characters. Its own error shows the value."""
    return _UNSENDABLE.search(value) is None
