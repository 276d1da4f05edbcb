"""Scores of one method at one strength, and the strength and the layer that score best."""

import sys

import numpy as np
import pytest
import torch
from helpers import pairs_of

import psr_lens as psr
from psr_lens import organism
from psr_lens.errors import InputError
from psr_lens.evaluation.scores import score
from psr_lens.generation.sampling import Response
from psr_lens.replacement import Site
from psr_lens.results.judgement import Judgement

PAIR = psr.PromptPair("what is a bee ?", "talk like a pirate .", (1, 5, 9), (1, 4, 5, 9), 2)
SHORT = psr.SamplingConfig(max_new_tokens=4, temperature=0.0)


class FixedJudge:
    def __init__(self, trait, coherence):
        self.trait, self.coherence = trait, coherence

    def __call__(self, texts, questions):
        return Judgement(np.array(self.trait, float), np.array(self.coherence, float), ("",) * len(texts))


class KnownJudge:
    """Knows the trait and the coherence of every text, and scores nothing else."""

    def __init__(self, verdicts):
        self.verdicts = verdicts

    def __call__(self, texts, questions):
        trait, coherence = np.array([self.verdicts[text] for text in texts], float).T
        return Judgement(trait, coherence, ("",) * len(texts))


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


@pytest.fixture(scope="module")
def pushed(tiny_llama):
    """A constant that pushes at every layer, what the model answers to one question at three strengths, and that question's pair."""
    model = tiny_llama.model
    width = model.cfg.d_model
    direction = torch.nn.functional.normalize(torch.randn(1, width, generator=torch.Generator().manual_seed(0)))
    site = Site(direction, torch.zeros(1, width), torch.ones(1), "constant")
    constant = psr.Replacement({f"blocks.{layer}.hook_resid_post": site for layer in range(model.cfg.n_layers)}, "R", "push", {})
    pairs = pairs_of(model, 1)
    strengths = (0.0, 1.0, 64.0)
    texts = {alpha: psr.generate(model, pairs, constant, sampling=SHORT, alpha=alpha)[0].text for alpha in strengths}
    assert len(set(texts.values())) == 3, "the test needs three different answers"
    return model, constant, pairs, texts


def best(pushed, verdicts, alphas, **options):
    """The best strength, where the answer at each one has a known trait and coherence."""
    model, constant, pairs, texts = pushed
    judge = KnownJudge({texts[alpha]: verdict for alpha, verdict in verdicts.items()})
    return psr.best_alpha(model, pairs, constant, judge, alphas=alphas, sampling=SHORT, **options)


def test_best_alpha_keeps_the_coherence_bound(pushed):
    verdicts = {0.0: (10, 99), 1.0: (40, 96), 64.0: (90, 60)}
    found = best(pushed, verdicts, [0.0, 1.0, 64.0])
    assert (found.alpha, found.trait, found.coherence, found.method) == (1.0, 40.0, 96.0, "push")
    assert best(pushed, verdicts, [64.0]).alpha == 64.0
    assert best(pushed, verdicts, [0.0, 64.0], min_coherence=50).alpha == 64.0


@pytest.mark.parametrize("order", [(0.0, 1.0, 64.0), (64.0, 1.0, 0.0), (1.0, 0.0, 64.0)])
@pytest.mark.parametrize("level", [60, 99])
def test_what_could_not_be_scored_is_never_the_best_strength(pushed, order, level):
    verdicts = {0.0: (np.nan, np.nan), 1.0: (level, level), 64.0: (np.nan, np.nan)}
    assert best(pushed, verdicts, order).alpha == 1.0


def calibrated(model, monkeypatch, scores, prompt=(80, 90), **options):
    """The recommended strength where the prompt and each strength have a known trait and coherence; and the strengths that were tried."""
    tried = []

    def scores_at(model, pairs, replacement, judge, *, alpha=1.0, context="base", **given):
        if context == "prompted":
            assert replacement is None
            return made_up("prompt", None, *prompt)
        tried.append(alpha)
        return made_up("A-PSR", alpha, *scores[alpha])

    monkeypatch.setattr(sys.modules["psr_lens.evaluation.scores"], "scores_at", scores_at)
    replacement = psr.Replacement({"blocks.0.hook_resid_post": Site(*torch.ones(2, 1, 4), torch.ones(1), "constant")}, "R", "x", {})
    found = psr.calibrate(model, [PAIR], replacement, FixedJudge([], []), alphas=list(scores)[::-1], **options)
    assert found.sites is replacement.sites
    return found.recommended_alpha, tried


def made_up(name, alpha, trait, coherence):
    return psr.Scores(name, alpha, 1, 0, float(trait), float(coherence), (0.0, 100.0), (0.0, 100.0))


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [
        ({1.0: (60, 90), 1.25: (79, 89), 1.5: (95, 92)}, 1.25),  # the first within the margin of 2 of both
        ({1.0: (85, 95), 1.25: (99, 99)}, 1.0),
        ({1.0: (85, 50), 1.25: (79, 88)}, 1.25),  # too incoherent at 1
        ({1.0: (60, 90), 1.25: (70, 89), 1.5: (95, 50)}, 1.25),  # none has both: the highest trait that is coherent
        ({1.0: (60, 50), 1.25: (70, 60), 1.5: (95, 55)}, 1.25),  # none is coherent: the most coherent
        ({1.0: (np.nan, np.nan), 1.25: (20, 90)}, 1.25),
    ],
)
def test_the_recommended_strength_is_the_first_that_does_as_well_as_the_prompt(tiny_llama, monkeypatch, scores, wanted):
    found, tried = calibrated(tiny_llama.model, monkeypatch, scores)
    assert found == wanted
    assert tried == sorted(tried)


def test_no_more_strengths_are_tried_than_are_needed_and_a_judge_of_the_trait_alone_serves(tiny_llama, monkeypatch):
    nothing = float("nan")
    scores = {1.0: (60, nothing), 1.25: (90, nothing), 1.5: (99, nothing)}
    assert calibrated(tiny_llama.model, monkeypatch, scores, prompt=(80, nothing)) == (1.25, [1.0, 1.25])
    assert calibrated(tiny_llama.model, monkeypatch, scores, prompt=(100, nothing), margin=0.5) == (1.5, [1.0, 1.25, 1.5])


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_calibrated_is_refused(tiny_llama, monkeypatch):
    nothing = float("nan")
    with pytest.raises(InputError, match="judge: got one that gave no answer a score of trait"):
        calibrated(tiny_llama.model, monkeypatch, {1.0: (nothing, 90)}, prompt=(nothing, 90))
    with pytest.raises(InputError, match="alphas: got an empty list"):
        calibrated(tiny_llama.model, monkeypatch, {})
    with pytest.raises(InputError, match=r"margin: got -1.*from 0 to 100"):
        calibrated(tiny_llama.model, monkeypatch, {1.0: (50, 90)}, margin=-1.0)


@pytest.fixture(scope="module")
def fitted(tiny_llama):
    """Triplets to fit on, a validation pair, and what the model answers to it with a fit of each of two layers."""
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 5)
    triplets = psr.sample_responses(model, pairs[:4], None, sampling=psr.SamplingConfig(max_new_tokens=6))
    config = psr.DiM()
    texts = {}
    for layer in (0, 1):
        found = psr.fit(model, triplets, psr.DiM(layers=layer))
        texts[layer] = psr.generate(model, pairs[4:], found, sampling=SHORT)[0].text
    return model, triplets, config, pairs[4:], texts


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("other", [(30, 99), (np.nan, np.nan)])
def test_best_layer_keeps_the_layer_that_scores_best_and_never_one_without_scores(fitted, order, wanted, other):
    model, triplets, config, pairs, texts = fitted
    judge = KnownJudge({texts[wanted]: (90, 99), texts[1 - wanted]: other})
    found = psr.best_layer(model, triplets, config, judge, pairs=pairs, layers=order, sampling=SHORT)
    assert list(found.sites) == [f"blocks.{wanted}.hook_resid_post"]


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_by_name(pushed, fitted):
    model, constant, pairs, _ = pushed
    judge = FixedJudge([], [])
    with pytest.raises(InputError, match=r"pairs: got an empty list, expected at least one prompt pair"):
        psr.scores_at(model, [], None, judge)
    with pytest.raises(InputError, match=r"alphas: got an empty list"):
        psr.best_alpha(model, pairs, constant, judge, alphas=[])
    with pytest.raises(InputError, match=r"layers: got an empty list, expected at least one candidate layer"):
        psr.best_layer(*fitted[:3], judge, pairs=pairs, layers=[])
    with pytest.raises(
        InputError, match=r"replacement: got a value of type FixedJudge, expected a Replacement.* order model, pairs"
    ):
        psr.scores_at(model, pairs, judge, constant)
    with pytest.raises(InputError, match="judge: got a value of type Replacement, expected a judge"):
        psr.scores_at(model, pairs, None, constant)
    with pytest.raises(InputError, match="replacement: got a value of type NoneType"):
        psr.best_alpha(model, pairs, None, judge, alphas=[1.0])


def test_scores_at_gives_the_same_scores_for_the_same_seed():
    model = psr.load_model("organism")
    pairs = psr.prompt_pairs(model, organism.questions(20, split="held_out"), organism.instruction("gloomy"))
    judge = psr.judges.organism("gloomy")
    first = psr.scores_at(model, pairs, None, judge, context="prompted")
    assert first == psr.scores_at(model, pairs, None, judge, context="prompted")
    assert first.method == "prompt"
    assert first.alpha is None
    assert first.trait >= 95
