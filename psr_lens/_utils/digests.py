"""Digests of content."""

from __future__ import annotations

import json
from typing import Any

import torch
import xxhash
from torch import Tensor


def digest_of(content: Any) -> str:
    """xxh3_128 of JSON content, in hexadecimal; the order of keys does not matter."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as uint8 because numpy has no bfloat16; copied only from a GPU or if not contiguous."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
