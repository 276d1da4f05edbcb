"""A judge that needs no model, and settings that keep evaluations small."""

from dataclasses import dataclass

import numpy as np
from helpers import random_replacement

import psr_lens as psr
from psr_lens.results.judgement import Judgement

SAMPLING = psr.SamplingConfig(max_new_tokens=6, seed=3)
QUICK = psr.Calibration(targets=(), at_prompt=False)
SHORT = psr.Calibration(targets=(50.0,), steps=2, maximum=2.0)


@dataclass(frozen=True)
class WordJudge:
    """Trait: how many words begin with a letter up to m; coherence: how many words are unlike the one before."""

    identity = "words, 1"

    def __call__(self, texts, questions):
        words = [text.split() or ["x"] for text in texts]
        trait = [100 * np.mean([word[0] <= "m" for word in each]) for each in words]
        fresh = [100 * np.mean([a != b for a, b in zip(each, ["", *each], strict=False)]) for each in words]
        return Judgement(np.array(trait), np.array(fresh), tuple(f"{len(each)} words" for each in words))


def two(model):
    return {"one": random_replacement(model, seed=1), "two": random_replacement(model, seed=2, layers=[1])}


def lines(found):
    """All that an evaluation holds, so that two can be compared to the last bit."""
    return repr(
        [[(name, p.alpha, p.trait.tolist(), p.coherence.tolist(), p.answers) for p in c] for name, c in found.curves.items()]
    )
