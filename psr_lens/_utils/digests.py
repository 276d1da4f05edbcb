"""Digests of content."""

from __future__ import annotations

import json
from typing import Any

import torch
import xxhash
from torch import Tensor


def json_text(content: Any) -> str:
    """JSON content as text that is the same for the same content: keys are sorted, and nothing else is written."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def digest_of(content: Any) -> str:
    """xxh3_128 of JSON content, in hexadecimal; the order of keys does not matter."""
    return xxhash.xxh3_128_hexdigest(json_text(content).encode())


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as uint8 because numpy has no bfloat16; copied only from a GPU or if not contiguous."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
