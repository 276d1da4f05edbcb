"""Digests of JSON content."""

from __future__ import annotations

import json
from typing import Any

import xxhash


def json_text(content: Any) -> str:
    """JSON content as text that is the same for the same content: keys are sorted, and nothing else is written."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def digest_of(content: Any) -> str:
    """xxh3_128 of JSON content, in hexadecimal; the order of keys does not matter."""
    return xxhash.xxh3_128_hexdigest(json_text(content).encode())
