"""Triplets from a file of questions, with the file's responses or sampled ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psr_lens.datasets import PairLine
    from psr_lens.models import HookedModel
    from psr_lens.prompts import PromptPair, Triplet


def triplets_of_lines(
    model: HookedModel, pairs: Sequence[PromptPair], lines: Sequence[PairLine], max_new_tokens: int, seed: int
) -> Sequence[Triplet]:
    """The file's own responses with their scores, or sampled ones if it has none."""
    if lines[0].response is not None:
        return given_triplets(model, pairs, lines)
    import psr_lens as psr

    return psr.sample_responses(model, pairs, sampling=psr.SamplingConfig(max_new_tokens=max_new_tokens, seed=seed))


def given_triplets(model: HookedModel, pairs: Sequence[PromptPair], lines: Sequence[PairLine]) -> list[Triplet]:
    """The file's own responses with their scores; every line has a response."""
    import psr_lens as psr

    triplets = psr.with_responses(model, pairs, [str(line.response) for line in lines])
    return [replace(triplet, trait=line.trait, coherence=line.coherence) for triplet, line in zip(triplets, lines, strict=True)]
