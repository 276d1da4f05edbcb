"""Refinement: which texts a fit is given in each round, and what it does with them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import pairs_of

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.evaluation import on_policy_refinement
from psr_lens.results.judgement import Judgement

CONFIG = psr.Sequential(layers=[0, 1], rank=1, regression_steps=3)
SHORT = psr.SamplingConfig(max_new_tokens=5)


class Odd:
    """Accepts texts by their index in the call: those for which `accepts` is true."""

    def __init__(self, accepts, sides=("trait", "coherence")):
        self.accepts, self.sides, self.seen = accepts, sides, []

    def __call__(self, texts, questions):
        self.seen.append(list(texts))
        trait = np.array([80.0 if self.accepts(index) else 20.0 for index in range(len(texts))])
        nothing = np.full(len(texts), np.nan)
        scores = [trait if side in self.sides else nothing for side in ("trait", "coherence")]
        return Judgement(*scores, ("",) * len(texts), self.sides)


@pytest.fixture(scope="module")
def data(tiny_llama):
    return tiny_llama.model, psr.sample_responses(tiny_llama.model, pairs_of(tiny_llama.model, 4), sampling=SHORT)


@pytest.fixture
def fits(monkeypatch):
    """The triplets of every fit."""
    given, real = [], on_policy_refinement.fit

    def fit(model, triplets, config):
        given.append(list(triplets))
        return real(model, triplets, config)

    monkeypatch.setattr(on_policy_refinement, "fit", fit)
    return given


def same(one, other) -> bool:
    return all(torch.equal(site.weights, other.sites[name].weights) for name, site in one.sites.items())


def test_each_round_adds_the_accepted_responses_of_the_steered_model(data, fits):
    model, triplets = data
    judge = Odd(lambda index: index % 2 == 0)
    found = psr.refine(model, triplets, CONFIG, judge, rounds=2, alpha=1.5, sampling=SHORT)
    assert [each[:4] for each in fits] == [list(triplets)] * 3
    pairs, steered = [each.pair for each in triplets], psr.fit(model, triplets, CONFIG)
    for number, (earlier, later) in enumerate(pairwise(fits), 1):
        responses = psr.generate(model, pairs, steered, alpha=1.5, sampling=replace(SHORT, seed=number))
        assert judge.seen[number - 1] == [each.text for each in responses]
        assert later[: len(earlier)] == earlier
        assert [(each.pair, each.response_ids, each.trait) for each in later[len(earlier) :]] == [
            (pairs[index], responses[index].ids, 80.0) for index in (0, 2)
        ]
        steered = psr.fit(model, later, CONFIG)
    assert same(found, steered)
    assert found.settings["refined"] == [2, 2]
    assert found.settings["triplets"] == 8


def test_texts_without_the_trait_and_those_known_teach_nothing(data, fits):
    model, triplets = data
    plain = psr.fit(model, triplets, CONFIG)
    refused = psr.refine(model, triplets, CONFIG, Odd(lambda index: False), rounds=2, sampling=SHORT)
    assert same(refused, plain)
    assert refused.settings["refined"] == [0, 0]
    assert len(fits) == 1
    greedy = replace(SHORT, temperature=0.0)
    again = psr.refine(model, triplets, CONFIG, Odd(lambda index: True), rounds=3, alpha=0.0, sampling=greedy)
    assert again.settings["refined"] == [4, 0, 0]  # at a strength of 0 every round says the same


def test_other_questions_can_be_asked_and_no_round_is_a_fit(data):
    model, triplets = data
    judge = Odd(lambda index: True)
    found = psr.refine(model, triplets, CONFIG, judge, pairs=pairs_of(model, 7), sampling=SHORT)
    assert [len(texts) for texts in judge.seen] == [7]
    assert found.settings["triplets"] == 11
    assert same(psr.refine(model, triplets, CONFIG, judge, rounds=0), psr.fit(model, triplets, CONFIG))
    assert len(judge.seen) == 1


@pytest.mark.usefixtures("unchecked")
def test_a_judge_that_cannot_tell_the_trait_and_other_wrong_arguments_are_refused(data):
    model, triplets = data
    with pytest.raises(InputError, match="judge: got one that gives no trait"):
        psr.refine(model, triplets, CONFIG, Odd(lambda index: True, sides=("coherence",)), sampling=SHORT)
    with pytest.raises(InputError, match="rounds: got -1"):
        psr.refine(model, triplets, CONFIG, Odd(lambda index: True), rounds=-1)
    with pytest.raises(InputError, match="pairs: got an empty list"):
        psr.refine(model, triplets, CONFIG, Odd(lambda index: True), pairs=[])
    with pytest.raises(InputError, match="triplets"):
        psr.refine(model, triplets[0], CONFIG, Odd(lambda index: True))
