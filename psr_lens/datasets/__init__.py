"""Readers of files of questions and instructions."""

from psr_lens.datasets.pairs import PairLine, read_pairs

__all__ = ["PairLine", "read_pairs"]
