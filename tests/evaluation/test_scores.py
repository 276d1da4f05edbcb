import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import psr_lens as psr
from psr_lens import organism
from psr_lens.errors import InputError
from psr_lens.evaluation.scores import score
from psr_lens.generation.sampling import Response
from psr_lens.replacement import Site
from psr_lens.results.intervals import bootstrap_interval
from psr_lens.results.judgement import Judgement

PAIR = psr.PromptPair("what is a bee ?", "talk like a pirate .", (1, 5, 9), (1, 4, 5, 9), 2)

NOTHING = psr.Replacement(
    {"blocks.0.hook_resid_post": Site(torch.zeros(1, 128), torch.zeros(1, 128), torch.zeros(1), "relu")}, "R", "nothing", {}
)


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


def test_no_answer_with_scores_gives_nan_and_not_zero():
    scores = score("x", [PAIR], [Response((3,), "a")], FixedJudge([np.nan], [np.nan]))
    assert scores.n == 0
    assert np.isnan(scores.trait)
    assert np.isnan(scores.trait_interval).all()


def test_bootstrap_interval_covers_the_mean_at_about_the_right_width():
    values = np.random.default_rng(1).normal(50, 10, size=400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval(values) == (low, high)


def test_constant_scores_have_an_interval_of_no_width():
    assert bootstrap_interval(np.full(20, 70.0)) == (70.0, 70.0)


def test_best_alpha_keeps_the_coherence_bound(monkeypatch):
    curve = {1.0: (10, 99), 2.0: (40, 96), 3.0: (90, 60)}

    def fake(model, pairs, replacement, judge, *, alpha, method, sampling):
        trait, coherence = curve[alpha]
        return psr.Scores("c", alpha, 1, 0, trait, coherence, (0, 0), (0, 0))

    monkeypatch.setattr(sys.modules["psr_lens.evaluation.scores"], "scores_at", fake)
    given = (psr.load_model("organism"), [PAIR], NOTHING, FixedJudge([], []))
    assert psr.best_alpha(*given, alphas=[1.0, 2.0, 3.0]).alpha == 2.0
    assert psr.best_alpha(*given, alphas=[3.0]).alpha == 3.0
    assert psr.best_alpha(*given, alphas=[1.0, 3.0], min_coherence=50).alpha == 3.0


@pytest.mark.parametrize("order", [(1.0, 2.0, 3.0), (3.0, 2.0, 1.0), (2.0, 1.0, 3.0)])
def test_what_could_not_be_scored_is_never_the_best(monkeypatch, order):
    module = sys.modules["psr_lens.evaluation.scores"]
    coherence = {1.0: np.nan, 2.0: 60.0, 3.0: np.nan}
    monkeypatch.setattr(module, "fit", lambda model, triplets, config: replace(NOTHING, settings={"layers": config.layers}))

    def fake(model, pairs, replacement, judge, *, alpha=None, method=None, sampling=None):
        value = coherence[alpha or replacement.settings["layers"]]
        return psr.Scores("c", alpha, 0, 1, value, value, (0, 0), (0, 0))

    monkeypatch.setattr(module, "scores_at", fake)
    model = psr.load_model("organism")
    assert psr.best_alpha(model, [PAIR], NOTHING, FixedJudge([], []), alphas=order).alpha == 2.0
    layers = [int(alpha) for alpha in order]
    assert psr.best_layer(model, [], psr.Sequential(), FixedJudge([], []), pairs=[PAIR], layers=layers).settings["layers"] == 2


def test_scores_at_refuses_no_pairs_and_best_alpha_no_strengths():
    with pytest.raises(InputError, match=r"pairs: got an empty list, expected at least one prompt pair"):
        psr.scores_at(psr.load_model("organism"), [], None, FixedJudge([], []))
    with pytest.raises(InputError, match=r"alphas: got an empty list"):
        psr.best_alpha(psr.load_model("organism"), [PAIR], NOTHING, FixedJudge([], []), alphas=[])


def test_best_layer_keeps_the_layer_that_scores_best(monkeypatch):
    module = sys.modules["psr_lens.evaluation.scores"]
    trait = {1: 30, 2: 90, 3: 60}
    monkeypatch.setattr(module, "fit", lambda model, triplets, config: replace(NOTHING, settings={"layers": config.layers}))
    monkeypatch.setattr(
        module,
        "scores_at",
        lambda model, pairs, candidate, judge, sampling: psr.Scores(
            "s", 1.0, 1, 0, trait[candidate.settings["layers"]], 99, (0.0, 0.0), (0.0, 0.0)
        ),
    )
    given = (psr.load_model("organism"), [], psr.Sequential(), FixedJudge([], []))
    assert psr.best_layer(*given, pairs=[PAIR], layers=[1, 2, 3]).settings["layers"] == 2
    with pytest.raises(InputError, match=r"layers: got an empty list, expected at least one candidate layer"):
        psr.best_layer(*given, pairs=[PAIR], layers=[])


def test_scores_at_gives_the_same_scores_for_the_same_seed():
    model = psr.load_model("organism")
    pairs = psr.prompt_pairs(model, organism.questions(20, split="held_out"), organism.instruction("gloomy"))
    judge = psr.judges.organism("gloomy")
    first = psr.scores_at(model, pairs, None, judge, context="prompted")
    assert first == psr.scores_at(model, pairs, None, judge, context="prompted")
    assert first.method == "prompt"
    assert first.alpha is None
    assert first.trait >= 95
