"""The strength and the layer that score best, and the strength that does as well as the prompt."""

import numpy as np
import pytest
import torch
from evaluated import WordJudge
from helpers import pairs_of

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.replacement import Site
from psr_lens.results.judgement import Judgement

SHORT = psr.SamplingConfig(max_new_tokens=4, temperature=0.0)


class KnownJudge:
    """Knows the trait and the coherence of every text, and scores nothing else."""

    def __init__(self, verdicts):
        self.verdicts, self.asked = verdicts, []

    def __call__(self, texts, questions):
        self.asked += texts
        trait, coherence = np.array([self.verdicts[text] for text in texts], float).T
        return Judgement(trait, coherence, ("",) * len(texts))


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


def calibrated(pushed, verdicts, prompt=(80, 90), **options):
    """The recommended strength, where the answers to the prompt and at each strength have known scores; and what was tried."""
    model, constant, pairs, texts = pushed
    prompted = psr.generate(model, pairs, context="prompted", sampling=SHORT)[0].text
    assert prompted not in texts.values(), "the test needs another answer to the prompt"
    judge = KnownJudge({prompted: prompt} | {texts[alpha]: verdict for alpha, verdict in verdicts.items()})
    found = psr.calibrate(model, pairs, constant, judge, alphas=list(verdicts)[::-1], sampling=SHORT, **options)
    assert found.sites is constant.sites
    return found.recommended_alpha, [alpha for text in judge.asked for alpha, each in texts.items() if each == text]


@pytest.mark.parametrize(
    ("verdicts", "wanted"),
    [
        ({0.0: (60, 90), 1.0: (79, 89), 64.0: (95, 92)}, 1.0),  # the first within the margin of 2 of both
        ({0.0: (85, 95), 1.0: (99, 99)}, 0.0),
        ({0.0: (85, 50), 1.0: (79, 88)}, 1.0),  # too incoherent at 0
        ({0.0: (60, 90), 1.0: (70, 89), 64.0: (95, 50)}, 1.0),  # none has both: short by 20, 10 and 40
        ({0.0: (2, 90), 1.0: (78, 85), 64.0: (60, 89)}, 1.0),  # a little coherence is not bought with the whole trait
        ({0.0: (60, 50), 1.0: (70, 60), 64.0: (95, 55)}, 1.0),
        ({0.0: (np.nan, np.nan), 1.0: (20, 90)}, 1.0),
    ],
)
def test_the_recommended_strength_is_the_first_that_does_as_well_as_the_prompt_or_else_the_nearest(pushed, verdicts, wanted):
    found, tried = calibrated(pushed, verdicts)
    assert found == wanted
    assert tried == sorted(tried)


def test_no_more_strengths_are_tried_than_are_needed_and_a_judge_of_the_trait_alone_serves(pushed):
    nothing = float("nan")
    verdicts = {0.0: (60, nothing), 1.0: (90, nothing), 64.0: (99, nothing)}
    assert calibrated(pushed, verdicts, prompt=(80, nothing)) == (1.0, [0.0, 1.0])
    assert calibrated(pushed, verdicts, prompt=(100, nothing), margin=0.5) == (64.0, [0.0, 1.0, 64.0])


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_calibrated_is_refused(pushed):
    nothing = float("nan")
    with pytest.raises(InputError, match="judge: got one that gave no answer a score of trait"):
        calibrated(pushed, {1.0: (nothing, 90)}, prompt=(nothing, 90))
    with pytest.raises(InputError, match="judge: got one that gave no answer a score of trait"):
        calibrated(pushed, {0.0: (nothing, 90), 1.0: (nothing, 90)})
    with pytest.raises(
        InputError, match="judge: got one that gave the prompt a score of trait and coherence, and the answers at no"
    ):
        calibrated(pushed, {0.0: (10, nothing), 1.0: (40, nothing), 64.0: (nothing, 80)})
    with pytest.raises(InputError, match="alphas: got an empty list"):
        calibrated(pushed, {})
    with pytest.raises(InputError, match=r"margin: got -1.*from 0 to 100"):
        calibrated(pushed, {1.0: (50, 90)}, margin=-1.0)


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
    judge = WordJudge()
    with pytest.raises(InputError, match=r"alphas: got an empty list"):
        psr.best_alpha(model, pairs, constant, judge, alphas=[])
    with pytest.raises(InputError, match=r"layers: got an empty list, expected at least one candidate layer"):
        psr.best_layer(*fitted[:3], judge, pairs=pairs, layers=[])
    with pytest.raises(InputError, match="replacement: got a value of type NoneType"):
        psr.best_alpha(model, pairs, None, judge, alphas=[1.0])
