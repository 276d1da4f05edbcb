"""Sequences of numbers: padding to one length, common prefix and suffix, ranges in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor


def padded(
    sequences: Sequence[Sequence[int]], side: Literal["left", "right"], device: torch.device | str = "cpu", *, filler: int = 0
) -> tuple[Int[Tensor, "sequence position"], Int[Tensor, "sequence position"]]:
    """Token ids, padded with `filler` on one side to the longest sequence, and their mask: 1 where a token is real."""
    width = max(map(len, sequences))
    tokens = torch.full((len(sequences), width), filler, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(sequences):
        real = slice(width - len(ids), width) if side == "left" else slice(len(ids))
        tokens[row, real] = torch.tensor(ids, dtype=torch.long)
        mask[row, real] = 1
    return tokens.to(device), mask.to(device)


def common_prefix(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences share at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(one), len(other)))


def common_suffix(one: Sequence[object], other: Sequence[object]) -> int:
    """How many items two sequences share at their end."""
    return common_prefix(one[::-1], other[::-1])


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers in words, consecutive ones as a range: `0–3, 5`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
