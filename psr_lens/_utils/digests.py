"""Digests of content."""

from __future__ import annotations

import json
from typing import Any

import torch
import xxhash
from torch import Tensor


def digest_of(content: Any) -> str:
    """xxh3_128 of what JSON holds, in hexadecimal; the order of keys does not count."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's own memory (numpy knows no bfloat16, so it passes as uint8); copied only from a GPU or if not contiguous."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
