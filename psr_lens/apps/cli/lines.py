"""Triplets from a file of lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psr_lens.datasets import PairLine
    from psr_lens.models import HookedModel
    from psr_lens.prompts import PromptPair, Triplet


def triplets_of_lines(
    model: HookedModel, asked: Sequence[PromptPair], lines: Sequence[PairLine], max_new_tokens: int, seed: int
) -> Sequence[Triplet]:
    """The file's own responses with their scores, or new ones."""
    import psr_lens as psr

    if lines[0].response is None:
        config = psr.SamplingConfig(max_new_tokens=max_new_tokens, seed=seed)
        return psr.sample_responses(model, asked, sampling=config)
    triplets = psr.with_responses(model, asked, [str(line.response) for line in lines])
    return [replace(triplet, trait=line.trait, coherence=line.coherence) for triplet, line in zip(triplets, lines, strict=True)]
