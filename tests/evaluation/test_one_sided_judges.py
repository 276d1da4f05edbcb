"""Judges that give only the trait or only coherence, wherever a judge is taken; and judges of both that could read nothing."""

import math

import numpy as np
import pytest
from chat_server import COHERENCE, completion, judge_at, prompt_of
from evaluated import QUICK, SAMPLING
from helpers import pairs_of, random_replacement, random_triplets

import psr_lens as psr
from psr_lens.errors import InputError
from psr_lens.evaluation.scores import score
from psr_lens.generation.sampled_triplets import judged_triplets
from psr_lens.generation.sampling import Response
from psr_lens.judges import Judgement

NAN = math.nan
PAIR = psr.PromptPair("what is a bee ?", "talk like a pirate .", (1, 5, 9), (1, 4, 5, 9), 2)
RESPONSES = [Response((3,), text) for text in "abcde"]


class Fixed:
    """A judge with known scores, of one kind or of both."""

    def __init__(self, trait=None, coherence=None, gives=None):
        self.trait, self.coherence, self.gives = trait, coherence, gives

    def __call__(self, texts, questions):
        sides = (np.full(len(texts), NAN) if side is None else np.array(side, float) for side in (self.trait, self.coherence))
        return Judgement(*sides, ("",) * len(texts), self.gives)


class Lengths:
    """Scores of one kind that differ from text to text."""

    def __init__(self, side):
        self.side = side

    def __call__(self, texts, questions):
        lengths, other = np.array([50.0 + len(text) % 50 for text in texts]), np.full(len(texts), NAN)
        trait, coherence = (lengths, other) if self.side == "trait" else (other, lengths)
        return Judgement(trait, coherence, ("",) * len(texts), (self.side,))


@pytest.mark.parametrize("declared", [True, False])
def test_responses_are_filtered_by_the_scores_that_a_judge_gives(declared):
    scores = [90, 49, 50, NAN, 100]
    coherent = judged_triplets([PAIR] * 5, RESPONSES, Fixed(coherence=scores, gives=("coherence",) if declared else None))
    assert [(each.response, each.trait, each.coherence) for each in coherent] == [("a", 100, 90), ("c", 100, 50), ("e", 100, 100)]
    assert [each.reason for each in coherent.dropped] == ["incoherent", "without a score"]
    with_trait = judged_triplets([PAIR] * 5, RESPONSES, Fixed(trait=scores, gives=("trait",) if declared else None))
    assert [(each.response, each.trait, each.coherence) for each in with_trait] == [("a", 90, 100), ("c", 50, 100), ("e", 100, 100)]
    assert [each.reason for each in with_trait.dropped] == ["without the trait", "without a score"]


def test_perplexity_alone_keeps_the_fluent_responses(organism):
    pairs = pairs_of(organism.model, 8)
    judge = psr.judges.perplexity(organism.model, pairs, given="either")
    found = psr.sample_responses(organism.model, pairs, judge)
    fluent = [judge([each.response], [each.pair.asked]).coherence[0] for each in found]
    assert [each.coherence for each in found] == pytest.approx(fluent)
    assert len(found) == 8 - sum(each.reason == "incoherent" for each in found.dropped) > 0


@pytest.mark.parametrize("unreadable", ["trait", "coherence", "both"])
def test_a_judge_of_both_that_can_read_no_reply_leaves_every_score_missing(serve, unreadable):
    def answer(request, number):
        side = "coherence" if "coherent" in prompt_of(request) else "trait"
        return completion("I would rather not say" if unreadable in (side, "both") else "90")

    judge = judge_at(serve(answer), coherence_prompt=COHERENCE)
    found = score("x", [PAIR] * 5, RESPONSES, judge)
    assert (found.n, found.missing) == (0, 5)
    assert np.isnan([found.trait, found.coherence, *found.trait_interval]).all()
    triplets = judged_triplets([PAIR] * 5, RESPONSES, judge)
    assert [each.reason for each in triplets.dropped] == ["without a score"] * 5


def test_two_judges_together_give_both_kinds_even_where_one_of_them_could_not():
    both = psr.judges.combine(trait=Fixed(trait=[NAN] * 5), coherence=Fixed(coherence=[90] * 5))
    assert (score("x", [PAIR] * 5, RESPONSES, both).n, score("x", [PAIR] * 5, RESPONSES, both).missing) == (0, 5)
    alone = score("x", [PAIR] * 5, RESPONSES, Fixed(coherence=[90] * 5))
    assert (alone.n, alone.missing, alone.coherence) == (5, 0, 90.0)


@pytest.mark.parametrize("side", ["trait", "coherence"])
def test_an_evaluation_counts_what_has_no_score_as_missing(tiny_llama, side):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 3)
    found = psr.evaluate(model, pairs, random_replacement(model), Lengths(side), calibration=QUICK, sampling=SAMPLING)
    for row in found.table():
        assert (row.n, row.missing) == ((3, 0) if row.metric == side else (0, 3))
        assert math.isnan(row.value) == (row.metric != side)


def test_a_strength_where_one_kind_of_score_is_missing_throughout_counts_for_neither(tiny_llama):
    """The judge does not say what it gives; at other strengths it gives both."""
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 3)
    method = random_replacement(model, size=2.0)
    steered = {each.text for each in psr.generate(model, pairs, method, sampling=SAMPLING)}
    assert not steered & {each.text for each in psr.generate(model, pairs, sampling=SAMPLING)}

    def judge(texts, questions):
        trait = np.array([NAN if text in steered else 70.0 for text in texts])
        return Judgement(trait, np.full(len(texts), 80.0), ("",) * len(texts))

    found = psr.evaluate(model, pairs, {"m": method}, judge, calibration=QUICK, sampling=SAMPLING)
    at = {(row.alpha, row.metric): (row.n, row.missing) for row in found.table().select(method="m")}
    assert at == {(0.0, "trait"): (3, 0), (0.0, "coherence"): (3, 0), (1.0, "trait"): (0, 3), (1.0, "coherence"): (0, 3)}


@pytest.mark.parametrize("side", ["trait", "coherence"])
def test_side_effects_and_robustness_have_the_one_kind_of_score(tiny_llama, side):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 2)
    method, judge = random_replacement(model), Lengths(side)
    tables = (
        psr.collateral(model, pairs, method, judge, sampling=SAMPLING).table(),
        psr.robustness(model, pairs, method, judge, counter="just answer .", sampling=SAMPLING).table(),
    )
    for table in tables:
        for row in table.select(metric=["trait", "coherence"]):
            assert (row.n, row.missing) == ((2, 0) if row.metric == side else (0, 2))


def test_the_best_layer_is_that_of_the_only_kind_of_score(tiny_llama):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 3)
    triplets = random_triplets(model, 3)
    merit = {}
    for layer in (0, 1, 2):
        fitted = psr.fit(model, triplets, psr.DiM(layers=layer))
        texts = [each.text for each in psr.generate(model, pairs, fitted, sampling=SAMPLING)]
        merit[layer] = Lengths("trait")(texts, texts).trait.mean()
    assert len(set(merit.values())) > 1
    for order in ((0, 1, 2), (2, 1, 0)):
        best = psr.best_layer(model, triplets, psr.DiM(), Lengths("trait"), pairs=pairs, layers=order, sampling=SAMPLING)
        assert merit[best.settings["layers"]] == max(merit.values())
    with pytest.raises(InputError, match="judge: got one that gave no answer a score"):
        psr.best_layer(model, triplets, psr.DiM(), Fixed(), pairs=pairs, layers=[0], sampling=SAMPLING)


def test_the_best_strength_needs_a_trait_and_a_coherence_that_can_be_kept(tiny_llama):
    model, pairs = tiny_llama.model, pairs_of(tiny_llama.model, 2)
    options = {"alphas": [0.0, 1.0, 4.0], "sampling": SAMPLING}
    method = random_replacement(model)
    with pytest.raises(InputError, match=r"judge: got one that gave no answer a score of coherence, .*`min_coherence=0`"):
        psr.best_alpha(model, pairs, method, Lengths("trait"), **options)
    with pytest.raises(InputError, match="judge: got one that gave no answer a score of trait"):
        psr.best_alpha(model, pairs, method, Lengths("coherence"), **options)
    traits = [psr.scores_at(model, pairs, method, Lengths("trait"), alpha=alpha, sampling=SAMPLING).trait for alpha in (0, 1, 4)]
    assert psr.best_alpha(model, pairs, method, Lengths("trait"), min_coherence=0, **options).trait == max(traits)


def test_what_a_judge_says_it_gives_decides_which_texts_count():
    empty = Judgement(np.zeros(0), np.zeros(0), ())
    assert (empty.sides, empty.present.tolist()) == (("trait", "coherence"), [])
    for gives, counts in ((("trait",), [True, False]), (("trait", "coherence"), [False, False]), (None, [True, False])):
        assert Judgement(np.array([1.0, NAN]), np.array([NAN, NAN]), ("",) * 2, gives).present.tolist() == counts
