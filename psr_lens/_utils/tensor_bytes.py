"""The bytes of a tensor, for digests and files."""

from __future__ import annotations

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, as uint8 because numpy has no bfloat16; copied only from a GPU or if not contiguous."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
