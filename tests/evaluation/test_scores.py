"""Scores of one method at one strength."""

import numpy as np
import pytest
from helpers import pairs_of, random_replacement

import psr_lens as psr
from psr_lens import organism
from psr_lens.errors import InputError
from psr_lens.evaluation.scores import score
from psr_lens.generation.sampling import Response
from psr_lens.results.judgement import Judgement

PAIR = psr.PromptPair("what is a bee ?", "talk like a pirate .", (1, 5, 9), (1, 4, 5, 9), 2)
SHORT = psr.SamplingConfig(max_new_tokens=4, temperature=0.0)


class FixedJudge:
    def __init__(self, trait, coherence):
        self.trait, self.coherence = trait, coherence

    def __call__(self, texts, questions):
        return Judgement(np.array(self.trait, float), np.array(self.coherence, float), ("",) * len(texts))


def test_means_are_over_the_answers_that_have_both_scores_and_the_others_are_counted_as_missing():
    judge = FixedJudge([100, 50, np.nan, 0], [100, 80, 90, np.nan])
    scores = score("x", [PAIR] * 4, [Response((3,), "a")] * 4, judge)
    assert (scores.n, scores.missing) == (2, 2)
    assert (scores.trait, scores.coherence) == (75.0, 90.0)
    assert repr(scores) == "Scores(x: trait 75.0 [50.0, 100.0], coherence 90.0 [80.0, 100.0]; n=2, 2 missing)"


def test_no_answer_with_scores_gives_nan_and_not_zero():
    scores = score("x", [PAIR], [Response((3,), "a")], FixedJudge([np.nan], [np.nan]))
    assert scores.n == 0
    assert np.isnan(scores.trait)
    assert np.isnan(scores.trait_interval).all()


def test_a_single_answer_has_scores_and_no_interval():
    scores = score("x", [PAIR], [Response((3,), "a")], FixedJudge([73], [90]))
    assert scores.trait == 73.0
    assert np.isnan([*scores.trait_interval, *scores.coherence_interval]).all()


def test_scores_at_gives_the_same_scores_for_the_same_seed():
    model = psr.load_model("organism")
    pairs = psr.prompt_pairs(model, organism.questions(20, split="held_out"), organism.instruction("gloomy"))
    judge = psr.judges.organism("gloomy")
    first = psr.scores_at(model, pairs, None, judge, context="prompted")
    assert first == psr.scores_at(model, pairs, None, judge, context="prompted")
    assert first.method == "prompt"
    assert first.alpha is None
    assert first.trait >= 95


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_by_name(tiny_llama):
    model, judge = tiny_llama.model, FixedJudge([], [])
    pairs, constant = pairs_of(model, 1), random_replacement(model)
    with pytest.raises(InputError, match=r"pairs: got an empty list, expected at least one prompt pair"):
        psr.scores_at(model, [], None, judge)
    with pytest.raises(
        InputError, match=r"replacement: got a value of type FixedJudge, expected a Replacement.* order model, pairs"
    ):
        psr.scores_at(model, pairs, judge, constant)
    with pytest.raises(InputError, match="judge: got a value of type Replacement, expected a judge"):
        psr.scores_at(model, pairs, None, constant)
